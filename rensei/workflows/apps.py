from django.apps import AppConfig
from django.db.models.signals import pre_delete


class WorkflowsConfig(AppConfig):
    name = "rensei.workflows"
    label = "workflows"

    def ready(self) -> None:
        from rensei.dispatch.signals import run_ended
        from rensei.workflows.execution import note_end
        from rensei.workflows.models import Workflow
        from rensei.workflows.stored_bytes import let_go

        run_ended.connect(note_end, dispatch_uid="rensei.workflows")
        pre_delete.connect(let_go, sender=Workflow, dispatch_uid="rensei.workflows.let_go")
