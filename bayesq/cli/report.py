"""``bayesq report``: a restoration as a page to explore in a browser, with its samples and error bars."""

import argparse

from bayesq.cli import common, restore, tasks
from bayesq.errors import BayesqError, ImageError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "report",
        help="restore a picture into a page of HTML that shows what is sure",
        description="Restores a picture as `bayesq restore` does, and writes one page of HTML, complete in itself: "
        "before and after, standard deviation, samples, and the posterior of every pixel.",
    )
    for task in tasks.add_task_parsers(parser, run, tasks.SUMMARIES, output="a page of HTML, - for standard output"):
        restore.add_inference_options(task)
        task.add_argument(
            "--truth", metavar="FILE", help="the picture that is sought: adds figures of merit and a calibration plot"
        )
        common.add_output_options(task)
        common.add_talk_options(task)


def run(args: argparse.Namespace) -> int:
    common.check_outputs(args, args.output)
    if args.algorithm in restore.ALGORITHMS and not restore.ALGORITHMS[args.algorithm].spreads:
        raise BayesqError("a point estimate has no spread to report: take another --algorithm")

    from pathlib import Path

    from bayesq import metrics
    from bayesq.io import read_image, to_tensor
    from bayesq.report import render

    image, measurement = restore.take(args)
    sides = tuple(side * getattr(args, "scale", 1) for side in image.size)
    truth = read_image(args.truth) if args.truth else None
    if truth and truth.size != sides:
        raise ImageError(f"{args.truth}: a truth of {sides[0]} x {sides[1]} pixels is needed")
    restoration, summary = restore.infer(args, measurement)
    y, x = (to_tensor(picture) if picture else None for picture in (image, truth))
    if measurement.grey:
        y, x = (picture if picture is None else picture.mean(1, keepdim=True) for picture in (y, x))
    facts = {
        "Task": measurement.task,
        "Noise": f"{255 * summary['noise']:.2f}/255",
        "Model": summary["model"],
        "Algorithm": summary["algorithm"],
    }
    title = "Restoration" if args.input == common.PIPE else Path(args.input).name
    page = render(restoration, y, x, title=title, facts=facts).encode()
    common.write(args.output, page)
    if x is not None:
        psnr, inside = metrics.psnr(restoration.mean, x).item(), metrics.coverage(restoration.samples, x, [0.9]).item()
        summary |= {"psnr": psnr, "coverage": inside}
        common.say(args, f"PSNR {psnr:.2f} dB; the 90 % intervals hold {inside:.1%} of the true values.")
    common.say(args, f"Wrote {len(page) / 1e6:.1f} MB of HTML.")
    if args.json:
        common.print_json(summary | {"bytes": len(page)})
    return 0
