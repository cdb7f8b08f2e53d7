"""The worker as its command starts it, with half a second to leave in: python -m tests.dispatch.leaving_worker."""


def main() -> None:
    import django

    django.setup()
    from django.core.management import call_command

    from rensei import worker

    worker.DRAIN_SECONDS = 0.5
    call_command("worker")


if __name__ == "__main__":
    main()
