from hypothesis import settings

settings.register_profile("bayesq", deadline=None)  # a busy machine is not a failure
settings.load_profile("bayesq")
