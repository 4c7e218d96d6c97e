//! Enrollment: a single-use token and a certificate request for a client certificate.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::sync::Arc;

use nkd_api::agent::{EnrollRequest, EnrollResponse, Purpose, ReportEvent};
use time::OffsetDateTime;

use super::pki::{self, NodeIdentity, Pki, PkiError};
use super::secret;
use crate::machine::lifecycle::{Input, Refused};
use crate::machine::{Registry, RegistryError};
use crate::store::{RowEffects, Scope, StoreError, TokenUse};

/// Enrollment was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The token is not known, is over, or belongs to another machine.
    #[error("the enrollment token is not valid: {0}")]
    Token(&'static str),
    /// The token was used before. The machine is stopped.
    #[error("the enrollment token was used before, at {0}: the machine is stopped until an operator looks into it")]
    Reused(OffsetDateTime),
    /// The machine is stopped.
    #[error("the machine is stopped: {0}")]
    Stopped(String),
    /// It does not fit the machine's life.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The certificate could not be made, or the request is wrong.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Buys a certificate with a token. The use of the token and the step of the machine are durable before the answer.
pub async fn enroll(
    registry: &Registry,
    pki: &Arc<Pki>,
    request: EnrollRequest,
) -> Result<EnrollResponse, EnrollError> {
    let now = OffsetDateTime::now_utc();
    let hash = secret::digest(&request.token);
    // The request is judged before the token is used up: a malformed one must not cost the node its only token.
    let key = pki::request_key(&request.csr)?;
    let token = match registry.store().use_token(&hash, Scope::Enroll, Some(&key), now).await? {
        TokenUse::Granted(token) => token,
        TokenUse::Reused(token, at) => {
            let reason = format!("its {} enrollment token was used twice, first at {at}", token.purpose.as_str());
            registry.apply(token.machine, Input::Alarm { reason }, RowEffects::default()).await?;
            return Err(EnrollError::Reused(at));
        }
        TokenUse::Superseded { token, contested } => {
            if contested {
                let reason =
                    "two parties enroll as this machine: a token of an older boot came after a newer one was used";
                registry.apply(token.machine, Input::Alarm { reason: reason.into() }, RowEffects::default()).await?;
            }
            return Err(EnrollError::Token("a later boot of this machine has replaced it; start the machine again"));
        }
        TokenUse::Expired(_) => {
            return Err(EnrollError::Token("its time is over; start the machine again for a new one"));
        }
        TokenUse::Unknown => return Err(EnrollError::Token("nobody issued it, or it was revoked")),
    };
    if token.machine != request.machine {
        let reason = format!("its enrollment token was used by a machine that calls itself {}", request.machine);
        registry.apply(token.machine, Input::Alarm { reason }, RowEffects::default()).await?;
        return Err(EnrollError::Token("it belongs to another machine"));
    }
    let machine = registry.find(&crate::machine::Selector::Id(token.machine)).await?;
    if let Some(reason) = machine.stopped {
        return Err(EnrollError::Stopped(reason));
    }
    let identity = NodeIdentity { machine: token.machine, purpose: token.purpose, generation: token.generation };
    let issued = pki.issue_client(&request.csr, identity, now)?;
    let input = Input::Enrolled { purpose: token.purpose, generation: token.generation };
    registry.apply(token.machine, input, RowEffects::default()).await.map_err(flatten)?;
    let facts = Input::Reported(ReportEvent::Facts { facts: Box::new(request.facts) });
    registry.apply(token.machine, facts, RowEffects::default()).await.map_err(flatten)?;
    Ok(response(pki, issued, now))
}

/// A new certificate for one that still holds.
pub async fn renew(
    registry: &Registry,
    pki: &Arc<Pki>,
    identity: NodeIdentity,
    csr: &str,
) -> Result<EnrollResponse, EnrollError> {
    let now = OffsetDateTime::now_utc();
    let machine = registry.find(&crate::machine::Selector::Id(identity.machine)).await?;
    if let Some(reason) = machine.stopped {
        return Err(EnrollError::Stopped(reason));
    }
    if identity.purpose != Purpose::Discovery && machine.generation != identity.generation {
        let refused =
            Refused::OldGeneration { name: machine.name, got: identity.generation, wanted: machine.generation };
        return Err(refused.into());
    }
    let issued = pki.issue_client(csr, identity, now)?;
    Ok(response(pki, issued, now))
}

fn response(pki: &Pki, issued: super::pki::Issued, now: OffsetDateTime) -> EnrollResponse {
    EnrollResponse {
        certificate: issued.certificate,
        ca: pki.ca_pem().to_owned(),
        renew_after: issued.renew_after,
        expires: issued.expires,
        server_time: now,
    }
}

fn flatten(error: RegistryError) -> EnrollError {
    match error {
        RegistryError::Refused(refused) => EnrollError::Refused(refused),
        other => EnrollError::Registry(other),
    }
}
