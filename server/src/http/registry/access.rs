//! Who may pull, and who may push.

use std::sync::Arc;

use axum::http::request::Parts;
use nkd_api::agent::Purpose;
use nkd_api::user::{Role, User};

use super::Result;
use super::refusal::Refusal;
use crate::fleet::pki::NodeIdentity;
use crate::fleet::task::{Standing, standing};
use crate::http::Connection;
use crate::http::auth::{Caller, token, user_of};
use crate::machine::{RegistryError, Selector};
use crate::service::Service;

/// Who is there.
pub(super) enum Visitor {
    /// A user, by token.
    User(Caller),
    /// A node, by certificate.
    Node(NodeIdentity),
    /// Somebody.
    Stranger,
}

impl Visitor {
    /// Who sent a request. A token that nobody has is refused, and not taken for no token.
    pub async fn of(service: &Service, parts: &mut Parts) -> Result<Self> {
        if let Some(token) = token(parts) {
            let user = user_of(service, &token).await?.ok_or_else(Refusal::unauthenticated)?;
            return Ok(Self::User(Caller(user)));
        }
        let node = parts.extensions.get::<Connection>().and_then(|connection| connection.node);
        Ok(node.map_or(Self::Stranger, Self::Node))
    }

    /// Refuses who may not pull: strangers, unless the settings let them, and nodes whose certificate is over.
    pub async fn may_pull(&self, service: &Arc<Service>) -> Result<()> {
        match self {
            _ if service.anonymous_pull => Ok(()),
            Self::User(caller) if caller.0.role >= Role::Viewer => Ok(()),
            Self::Node(node) if node.purpose == Purpose::Node && is_current(service, *node).await? => Ok(()),
            Self::User(Caller(User { name, .. })) => Err(Refusal::denied(format!("{name} may not pull"))),
            Self::Node(_) => Err(Refusal::denied("this takes the current certificate of an installed node")),
            Self::Stranger => Err(Refusal::unauthenticated()),
        }
    }

    /// The user who may push and delete.
    pub fn pusher(&self) -> Result<Caller> {
        match self {
            Self::User(Caller(user)) if user.role >= Role::Operator => Ok(Caller(user.clone())),
            Self::User(Caller(user)) => {
                let (role, name) = (user.role, &user.name);
                Err(Refusal::denied(format!("pushing and deleting take the role operator; {name} is {role}")))
            }
            Self::Node(_) | Self::Stranger => Err(Refusal::unauthenticated()),
        }
    }
}

async fn is_current(service: &Service, node: NodeIdentity) -> Result<bool> {
    match service.registry.find(&Selector::Id(node.machine)).await {
        Ok(machine) => Ok(machine.stopped.is_none() && standing(&machine, node) == Standing::Current),
        Err(RegistryError::NotFound(_)) => Ok(false),
        Err(error) => Err(crate::http::ApiError::from(error).into()),
    }
}
