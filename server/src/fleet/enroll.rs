//! Enrollment: a single-use token and a certificate request for a client certificate.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::sync::Arc;

use nkd_api::agent::{EnrollRequest, EnrollResponse, ReportEvent};
use nkd_api::machine::Machine;
use time::OffsetDateTime;

use super::pki::{self, NodeIdentity, Pki, PkiError};
use super::secret;
use super::task::{Standing, standing};
use crate::machine::lifecycle::{self, Input, Refused};
use crate::machine::{Registry, RegistryError, Selector};
use crate::store::{RowEffects, Scope, StoreError, Token, TokenUse};
use crate::trace::Trace;

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
///
/// Whatever can be refused is refused before the token is used up, so that a machine which asks too early, or with a
/// damaged request, does not lose its only token.
pub async fn enroll(
    registry: &Registry,
    pki: &Arc<Pki>,
    request: EnrollRequest,
) -> Result<EnrollResponse, EnrollError> {
    let claimed = request.machine;
    let result = try_enroll(registry, pki, request).await;
    if let Err(error) = &result {
        let machine = registry.find(&Selector::Id(claimed)).await.ok();
        let trace = machine.as_ref().map(|m| tracing::field::display(Trace::of(m)));
        tracing::warn!(trace, machine = %claimed, error = error as &dyn std::error::Error, "enrollment refused");
    }
    result
}

async fn try_enroll(
    registry: &Registry,
    pki: &Arc<Pki>,
    request: EnrollRequest,
) -> Result<EnrollResponse, EnrollError> {
    let now = OffsetDateTime::now_utc();
    let hash = secret::digest(&request.token);
    let key = pki::request_key(&request.csr)?;
    let known = registry.store().token(&hash, Scope::Enroll).await?;
    let known = known.ok_or(EnrollError::Token("nobody issued it, or it was revoked"))?;
    if known.machine != request.machine {
        let reason = format!("its enrollment token was used by a machine that calls itself {}", request.machine);
        registry.apply(known.machine, Input::Alarm { reason }, RowEffects::default()).await?;
        return Err(EnrollError::Token("it belongs to another machine"));
    }
    let input = Input::Enrolled { purpose: known.purpose, generation: known.generation, boot: known.boot };
    let machine = registry.find(&Selector::Id(known.machine)).await?;
    if let Some(reason) = machine.stopped {
        return Err(EnrollError::Stopped(reason));
    }
    lifecycle::step(machine, input.clone(), now)?;
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
                    "two parties enroll as this machine: a token came after another boot had taken its configuration";
                registry.apply(token.machine, Input::Alarm { reason: reason.into() }, RowEffects::default()).await?;
            }
            return Err(EnrollError::Token("another boot of this machine has replaced it; start the machine again"));
        }
        TokenUse::Expired(token) => {
            let reason = format!("its agent came with a {} token whose time is over", token.purpose.as_str());
            registry.apply(token.machine, Input::Refused { reason }, RowEffects::default()).await?;
            return Err(EnrollError::Token("its time is over; start the machine again for a new one"));
        }
        TokenUse::Unknown => return Err(EnrollError::Token("it was revoked meanwhile")),
    };
    let Token { machine, purpose, generation, boot, .. } = token;
    let identity = NodeIdentity { machine, purpose, generation, boot };
    let issued = pki.issue_client(&request.csr, identity, now)?;
    registry.apply(token.machine, input, RowEffects::default()).await.map_err(flatten)?;
    let facts = Input::Reported(ReportEvent::Facts { facts: Box::new(request.facts) });
    registry.apply(token.machine, facts, RowEffects::default()).await.map_err(flatten)?;
    Ok(response(pki, issued, now))
}

/// The machine that the holder of a certificate speaks for. A certificate that contests the current boot raises the
/// alarm: the machine comes back stopped.
pub async fn admit(registry: &Registry, node: NodeIdentity) -> Result<Machine, RegistryError> {
    let machine = registry.find(&Selector::Id(node.machine)).await?;
    if machine.stopped.is_some() || standing(&machine, node) != Standing::Contested {
        return Ok(machine);
    }
    let reason = "two parties act as this machine: one came with the certificate of a boot that another has replaced";
    registry.apply(node.machine, Input::Alarm { reason: reason.into() }, RowEffects::default()).await
}

/// A new certificate for one that still holds.
pub async fn renew(
    registry: &Registry,
    pki: &Arc<Pki>,
    identity: NodeIdentity,
    csr: &str,
) -> Result<EnrollResponse, EnrollError> {
    let now = OffsetDateTime::now_utc();
    let machine = admit(registry, identity).await?;
    if let Some(reason) = machine.stopped {
        return Err(EnrollError::Stopped(reason));
    }
    if standing(&machine, identity) != Standing::Current {
        let (name, got, wanted) = (machine.name, identity.generation, machine.generation);
        return Err(match got == wanted {
            true => Refused::OtherBoot(name).into(),
            false => Refused::OldGeneration { name, got, wanted }.into(),
        });
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
