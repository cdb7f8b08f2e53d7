from django.apps import AppConfig


class WorkflowsConfig(AppConfig):
    name = "rensei.workflows"
    label = "workflows"

    def ready(self) -> None:
        from rensei.dispatch.signals import run_ended
        from rensei.workflows.execution import note_end

        run_ended.connect(note_end, dispatch_uid="rensei.workflows")
