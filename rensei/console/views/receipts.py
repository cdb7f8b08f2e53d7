"""The page of a run's receipt, which the browser verifies by itself."""

import json

from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from rensei.console.access import PageRequest, page
from rensei.core.errors import RenseiError
from rensei.dispatch import receipts
from rensei.dispatch.queries import find_run


@require_safe
@page
def receipt(request: PageRequest, run_id: str) -> HttpResponse:
    """Show a receipt, or answer with its JSON as a file. Without a receipt, the page says why."""
    run = find_run(request.access, run_id)
    try:
        document = receipts.receipt_of(run)
    except RenseiError as refusal:
        return render(request, "console/receipt.html", {"run": run, "refusal": refusal})
    if request.GET.get("format") == "json":
        answer = JsonResponse(document, json_dumps_params={"indent": 2, "ensure_ascii": False})
        answer["Content-Disposition"] = f'attachment; filename="receipt-{run.id}.json"'
        return answer
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return render(request, "console/receipt.html", {"run": run, "document": document, "text": text})
