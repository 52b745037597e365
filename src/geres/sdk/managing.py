"""Tenants, users, tokens and the audit log, for those who may manage them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from geres.model import joining
from geres.model import nodes as node_model
from geres.model import pools as pool_model
from geres.model import quotas as quota_model
from geres.model import tenants as model
from geres.model import webhooks as webhook_model
from geres.sdk.http import Transport
from geres.sdk.reading import path_part


class Manager:
    """What an operator or an admin asks of a client."""

    transport: Transport

    def tenants(self) -> list[model.Tenant]:
        """All tenants for an admin, else the caller's own."""
        return self.transport.get("/v1/tenants", list[model.Tenant])

    def tenant(self, name: str) -> model.Tenant:
        return self.transport.get(f"/v1/tenants/{path_part(name)}", model.Tenant)

    def create_tenant(self, name: str) -> model.Tenant:
        return self.transport.post("/v1/tenants", model.Tenant, model.CreateTenant(name=name))

    def disable_tenant(self, name: str, disabled: bool = True) -> model.Tenant:
        """Refuse all its tokens, or take them again.  What runs goes on."""
        verb = "disable" if disabled else "enable"
        return self.transport.post(f"/v1/tenants/{path_part(name)}/{verb}", model.Tenant, {})

    def quotas(self, user: str | None = None) -> list[quota_model.Quota]:
        """What the tenant and its users may have at once, and have; `*` is of each without an own one."""
        return self.transport.get("/v1/quotas", list[quota_model.Quota], user=user)

    def set_quota(self, user: str | None = None, **limits: Any) -> list[quota_model.Quota]:
        """Limit `running` tasks, their `cpus`, `queued` tasks or open `jobs`; None takes a limit away.

        Of one user, of each (`*`), or without a user of the whole tenant.
        """
        body = msgspec.json.encode({"user": user, **limits})
        answer = self.transport.call("PUT", "/v1/quotas", body)
        return msgspec.json.decode(answer, type=list[quota_model.Quota])

    def webhooks(self) -> list[webhook_model.Webhook]:
        """All of the tenant; takes an operator, like all that follows on webhooks."""
        return self.transport.get("/v1/webhooks", list[webhook_model.Webhook])

    def webhook(self, webhook_id: str) -> webhook_model.Webhook:
        return self.transport.get(f"/v1/webhooks/{path_part(webhook_id)}", webhook_model.Webhook)

    def create_webhook(
        self,
        url: str,
        *,
        events: Sequence[str] = (),
        states: Sequence[str] = (),
        job: str | None = None,
        secret: str | None = None,
    ) -> webhook_model.MadeWebhook:
        """Tell an address of ends from now on: of these `events` and `states`, empty for all, or of one job.

        The answer has the secret that signs the messages, which nobody shows again.
        """
        body = webhook_model.CreateWebhook(
            url=url, events=list(events), states=list(states), job=job, secret=secret
        )
        return self.transport.post("/v1/webhooks", webhook_model.MadeWebhook, body)

    def test_webhook(self, webhook_id: str) -> webhook_model.WebhookTested:
        """Send a test message now; how it was taken."""
        path = f"/v1/webhooks/{path_part(webhook_id)}/test"
        return self.transport.post(path, webhook_model.WebhookTested, {})

    def remove_webhook(self, webhook_id: str) -> webhook_model.Webhook:
        """Send nothing more to it; what waits is dropped.  It as it was."""
        answer = self.transport.call("DELETE", f"/v1/webhooks/{path_part(webhook_id)}")
        return msgspec.json.decode(answer, type=webhook_model.Webhook)

    def users(self) -> list[model.User]:
        return self.transport.get("/v1/users", list[model.User])

    def create_user(self, name: str, role: Any = "user") -> model.User:
        return self.transport.post("/v1/users", model.User, model.CreateUser(name=name, role=role))

    def edit_user(self, name: str, *, role: Any = None, disabled: bool | None = None) -> model.User:
        """Give a user another role, disable or enable one."""
        body = msgspec.json.encode(model.EditUser(role=role, disabled=disabled))
        headers = {"Content-Type": "application/json"}
        answer = self.transport.call("PATCH", f"/v1/users/{path_part(name)}", body, headers=headers)
        return msgspec.json.decode(answer, type=model.User)

    def drain_nodes(
        self, *names: str, reason: str | None = None, dry_run: bool = False
    ) -> list[node_model.NodeActed]:
        """Let nodes take no new tasks; what runs there goes on.  The answer tells of each name."""
        body = node_model.NodesNamed(names=list(names), reason=reason, dry_run=dry_run)
        return self.transport.post("/v1/nodes:drain", node_model.NodesActed, body).items

    def undrain_nodes(
        self, *names: str, reason: str | None = None, dry_run: bool = False
    ) -> list[node_model.NodeActed]:
        """Let nodes take tasks again, also those that were removed."""
        body = node_model.NodesNamed(names=list(names), reason=reason, dry_run=dry_run)
        return self.transport.post("/v1/nodes:undrain", node_model.NodesActed, body).items

    def reload_agents(
        self, *names: str, reason: str | None = None, dry_run: bool = False
    ) -> list[node_model.NodeActed]:
        """Have the agents of nodes read their settings again; what came of it is in the node's history."""
        body = node_model.NodesNamed(names=list(names), reason=reason, dry_run=dry_run)
        return self.transport.post("/v1/nodes:reload", node_model.NodesActed, body).items

    def restart_agents(
        self, *names: str, reason: str | None = None, dry_run: bool = False
    ) -> list[node_model.NodeActed]:
        """Have the agents of nodes begin anew; tasks stay with their supervisors."""
        body = node_model.NodesNamed(names=list(names), reason=reason, dry_run=dry_run)
        return self.transport.post("/v1/nodes:restart", node_model.NodesActed, body).items

    def remove_nodes(
        self, *names: str, running: Any = "wait", reason: str | None = None, dry_run: bool = False
    ) -> list[node_model.NodeActed]:
        """Drain nodes, and take them out of the cluster once no task is on them; comes back at once.

        Tasks that run there are waited for (`wait`), stopped and queued again (`requeue`), or cancelled
        (`terminate`).
        """
        body = node_model.NodesLeave(names=list(names), reason=reason, dry_run=dry_run, running=running)
        return self.transport.post("/v1/nodes:remove", node_model.NodesActed, body).items

    def reboot_nodes(
        self, *names: str, running: Any = "wait", reason: str | None = None, dry_run: bool = False
    ) -> list[node_model.NodeActed]:
        """Drain nodes, run the server's hook `reboot` once no task is on them, and take them back."""
        body = node_model.NodesLeave(names=list(names), reason=reason, dry_run=dry_run, running=running)
        return self.transport.post("/v1/nodes:reboot", node_model.NodesActed, body).items

    def pools(self) -> list[pool_model.Pool]:
        """All pools with their settings, by name; takes an operator, like all that follows on pools."""
        return self.transport.get("/v1/pools", list[pool_model.Pool])

    def pool(self, name: str) -> pool_model.Pool:
        return self.transport.get(f"/v1/pools/{path_part(name)}", pool_model.Pool)

    def edit_pool(
        self,
        name: str,
        start_task: pool_model.StartTask | UnsetType | None = UNSET,
        *,
        version: int | None = None,
        create: bool = False,
        dry_run: bool = False,
    ) -> pool_model.Pool:
        """Set what the pool's nodes run before they take tasks; None takes it away.

        A `geres.model.pools.StartTask` has a `command` or a `shell` line, `env`, `retries`, a time limit.
        Refused with Changed where somebody else changed the pool since it had this `version`.
        """
        body = {"create": create, "dry_run": dry_run}
        answer = self.transport.call(
            "PATCH",
            f"/v1/pools/{path_part(name)}",
            msgspec.json.encode(body if start_task is UNSET else {**body, "start_task": start_task}),
            headers={"If-Match": "*" if version is None else f'"{version}"'},
        )
        return msgspec.json.decode(answer, type=pool_model.Pool)

    def node_logs(self, name: str, *, since_seconds: float = 86400.0) -> Iterator[bytes]:
        """What the node's agent and supervisor have logged, in pieces of text."""
        return self.transport.stream(f"/v1/nodes/{path_part(name)}/logs", since=since_seconds)

    def create_join_token(
        self, *, pool: str | None = None, uses: int = 1, expires_seconds: float = 3600.0
    ) -> joining.JoinToken:
        """Let machines become nodes; `join` of the answer is what `geres agent --join` takes."""
        wanted = joining.CreateJoinToken(pool=pool, uses=uses, expires_seconds=expires_seconds)
        return self.transport.post("/v1/join-tokens", joining.JoinToken, wanted)

    def join_tokens(self) -> list[joining.JoinToken]:
        """The newest first; those that are no good any more too."""
        return self.transport.get("/v1/join-tokens", list[joining.JoinToken])

    def revoke_join_token(self, token_id: str) -> joining.JoinToken:
        """Let nobody join with it any more; nodes that have joined stay."""
        return self.transport.post(f"/v1/join-tokens/{path_part(token_id)}/revoke", joining.JoinToken, {})

    def tokens(self, *, user: str | None = None, all: bool = False) -> list[model.Token]:
        """The caller's, for an operator those of the tenant; `all`: those that are no good any more too."""
        return self.transport.get("/v1/tokens", list[model.Token], user=user, all=all or None)

    def create_token(
        self,
        *,
        user: str | None = None,
        role: Any = None,
        name: str | None = None,
        expires_seconds: float | None = None,
    ) -> model.MadeToken:
        """A new token with its secret, which nobody shows again."""
        body = model.CreateToken(user=user, role=role, name=name, expires_seconds=expires_seconds)
        return self.transport.post("/v1/tokens", model.MadeToken, body)

    def rotate_token(
        self, token: str, *, overlap_seconds: float = 3600.0, expires_seconds: float | None = None
    ) -> model.MadeToken:
        """A token in place of this one, which is good for `overlap_seconds` more."""
        body = model.RotateToken(overlap_seconds=overlap_seconds, expires_seconds=expires_seconds)
        return self.transport.post(f"/v1/tokens/{path_part(token)}/rotate", model.MadeToken, body)

    def revoke_token(self, token: str) -> model.Token:
        """Refuse a token (by id, first characters or name) from now on."""
        return self.transport.post(f"/v1/tokens/{path_part(token)}/revoke", model.Token, {})

    def audit_pages(self, *, limit: int = 1000, **query: Any) -> Iterator[model.AuditPage]:
        """Pages of the audit log, newest first."""
        cursor = None
        while True:
            page = self.transport.get("/v1/audit", model.AuditPage, limit=limit, cursor=cursor, **query)
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return
