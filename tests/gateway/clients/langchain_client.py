"""LangChain's Anthropic package."""

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from steps import CALL, CITY, GATEWAY, HELLO, LONG, MODEL, REFUSE, SIXTY, TOKEN, finish, picture


def chat(**more):
    return ChatAnthropic(model=MODEL, max_tokens=500, base_url=GATEWAY, api_key=TOKEN, max_retries=0, **more)


found = {"plain": chat().invoke(HELLO).text}
found["stream"] = "".join(part.text for part in chat().stream(SIXTY))
tool = {"name": "get_weather", "description": "Tells the weather.", "input_schema": CITY}
turns = [HumanMessage(CALL)]
turns.append(chat().bind_tools([tool]).invoke(turns))
calls = turns[-1].tool_calls
turns += [ToolMessage("Sunny.", tool_call_id=call["id"]) for call in calls]
found["tools"] = {"called": len(calls), "text": chat().bind_tools([tool]).invoke(turns).text}
source = {"type": "base64", "media_type": "image/png", "data": picture()}
found["image"] = (
    chat().invoke([HumanMessage([{"type": "image", "source": source}, {"type": "text", "text": HELLO}])]).text
)
thought = chat(thinking={"type": "adaptive", "display": "summarized"}).invoke(HELLO)
found["thinking"] = [block["type"] for block in thought.content]
place = chat().with_structured_output({"title": "place", **CITY}, method="json_schema")
found["structured"] = place.invoke(HELLO)
found["refusal"] = chat().invoke(REFUSE).response_metadata["stop_reason"]
parts = chat().stream(LONG)
found["cancel"] = any(part.text for part in [next(parts), next(parts), next(parts), next(parts)])
parts.close()
finish(found)
