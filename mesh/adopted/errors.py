"""Why a server is not registered, or not believed.

InferenceError
└── AgentRefused          the request is at fault (4xx)
    ├── AddressRefused     400, no address that a server may be registered under
    ├── GpuRequired        403, in the reference's own words
    ├── NotReached         502, nothing that answers like such a server is there
    ├── IsPeer             409, a peer of a mesh answers there
    ├── TooManyAgents      409
    ├── BadToken           401, no agent has that token
    ├── TokenOfAnother     403, another agent has it
    └── UnknownAgent       404
"""

from __future__ import annotations

from inference.errors import InferenceError

GPU_REQUIRED = "Validation error: GPU hardware is required for agent registration."


class AgentRefused(InferenceError):
    """What was asked for registered servers cannot be."""

    status = 400
    type = "invalid_request_error"


class AddressRefused(AgentRefused):
    """No server is asked there, whoever wants it."""

    code = "address_refused"


class GpuRequired(AgentRefused):
    """A server without GPU, where LLM_NODE_ALLOW_NO_GPU is not true."""

    status = 403
    code = "gpu_required"

    def __init__(self, why: str) -> None:
        super().__init__(f"{GPU_REQUIRED} {why}", param="gpu_devices")


class NotReached(AgentRefused):
    """The server was asked, and did not answer like one."""

    status = 502
    code = "agent_unreachable"


class IsPeer(AgentRefused):
    """Peers join the mesh; two meshes that adopt each other would forward in circles."""

    status = 409
    code = "agent_is_peer"


class TooManyAgents(AgentRefused):
    """More are registered than the mesh tells of."""

    status = 409
    code = "too_many_agents"


class BadToken(AgentRefused):
    """Missing, old, or made up."""

    status = 401
    code = "invalid_agent_token"


class TokenOfAnother(AgentRefused):
    """A good token, but not of the agent that the request is about."""

    status = 403
    code = "wrong_agent_token"


class UnknownAgent(AgentRefused):
    """Nobody of that id or name is registered."""

    status = 404
    code = "agent_not_found"
