"""What is due is called from here, with no frame of Rust below it."""


def run(turn):
    """Call what is due; what goes wrong in it is the loop's to report, but for an interrupt."""
    try:
        # In here as well: an interrupt may come as soon as the turn has begun.
        if not turn.begin():
            return
        for call, args in turn:
            try:
                call(*args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as failed:  # noqa: BLE001 - as the loop does
                message = "Exception in a callback of a TimeoutWheel"
                context = {"message": message, "exception": failed}
                turn.failed().call_exception_handler(context)
    finally:
        turn.end()
