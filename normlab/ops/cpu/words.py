"""The 64-bit words a kernel is called with: addresses (0 for what is not there), sizes, choices."""

(
    THREAD_NUM, NUM_THREADS, BARRIER,  # functions of the team, see `team`
    X, DY, RESIDUAL, WEIGHT, BIAS,
    STATISTICS,  # float64: mean, var and rstd of every statistic
    Y,  # dx in the backward pass
    DZ,  # dy past the activation, kept between passes
    DWEIGHT, DBIAS, SCRATCH,
    SLICES, SAMPLES, GROUPS, CHANNELS, POSITIONS,  # the form, see `normlab.ops.canonical`
    EPS,  # the bits of a float64
    CENTER,  # subtract the mean
    GIVEN,  # statistics are read; in the backward pass they are constants
    STREAM,  # write around the caches
    TOGETHER,  # all threads work on one unit or slice
    WIDTH,  # see `plan.row_width`
    RUNNING_MEAN, RUNNING_VAR, MOMENTUM, UNBIASED,  # addresses, and the bits of float64s
) = range(NUM_WORDS := 29)  # fmt: skip
