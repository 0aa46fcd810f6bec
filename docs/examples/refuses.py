"""A kernel that takes nothing: what the suite says then."""


def attend(q, k, v):
    raise NotImplementedError("only with a head width of 64 on sm_90")
