//! The configurations that machines get: which template, which variables, which tokens.
#![expect(clippy::disallowed_methods, reason = "the edge where clock and randomness come in")]

use std::net::IpAddr;

use nkd_api::agent::{AgentConfig, Purpose};
use nkd_api::image::Image;
use nkd_api::machine::Machine;
use nkd_api::profile::Profile;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::secret::{self, NoRandomness};
use crate::ignition::{self, AgentFiles, FirstStage, IgnitionError, MachineFacts, ProfileFacts, Variables, overlay};
use crate::service::{AGENT_UNIT, BALANCER_UNIT, DEADLINE_UNIT, Service, UPDATER_UNIT};
use crate::store::{Boot, NewToken, Scope};

/// Life of the tokens of a live boot: firmware, kernel and root file system have to be fetched before.
const BOOT_TOKEN_LIFE: Duration = Duration::hours(1);
/// Life of the token of an installed node: the disk is written before, and someone may power it off in between.
const NODE_TOKEN_LIFE: Duration = Duration::days(1);

/// A configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Template or snippet.
    #[error(transparent)]
    Ignition(#[from] IgnitionError),
    /// Randomness.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// The agent's own file could not be written as JSON.
    #[error("the agent's configuration cannot be written")]
    Encode(#[from] serde_json::Error),
}

/// A live boot, ready to be stored and served.
pub struct PreparedBoot {
    /// The boot.
    pub boot: Boot,
    /// Its tokens.
    pub tokens: Vec<NewToken>,
}

/// Prepares the two-stage configuration of a live boot.
pub fn prepare_boot(
    service: &Service,
    machine: &Machine,
    image: &Image,
    profile: &Profile,
    purpose: Purpose,
    local: IpAddr,
) -> Result<PreparedBoot, ConfigError> {
    let now = OffsetDateTime::now_utc();
    let id = Uuid::new_v4();
    let generation = if purpose == Purpose::Discovery { 0 } else { machine.generation };
    let enroll = secret::new_token()?;
    let fetch = secret::new_token()?;
    let template = if purpose == Purpose::Discovery { "discovery" } else { "live-install" };
    let variables = variables(service, machine, profile, purpose, generation, &enroll, local)?;
    let config = ignition::compose(&service.templates, template, &variables, &[], &profile.ignition_spec)?;
    let stage = FirstStage {
        url: &format!("{}/ignition/v1/config", service.addresses.api_url(local)),
        ca_pem: service.pki.ca_pem(),
        token: &fetch,
        config: &config,
    };
    let overlay = overlay::archive(&ignition::first_stage(&stage, &profile.ignition_spec));
    let token = |text: &str, scope| NewToken {
        hash: secret::digest(text),
        scope,
        machine: machine.id,
        generation,
        purpose,
        boot: id,
        expires: now + BOOT_TOKEN_LIFE,
    };
    let tokens = vec![token(&fetch, Scope::Config), token(&enroll, Scope::Enroll)];
    let boot =
        Boot { id, machine: machine.id, generation, purpose, image: image.name.clone(), created: now, overlay, config };
    Ok(PreparedBoot { boot, tokens })
}

/// The configuration of the system that `boot` installs, with the token that its agent enrolls with.
pub fn node_config(
    service: &Service,
    machine: &Machine,
    profile: &Profile,
    boot: Uuid,
    local: IpAddr,
) -> Result<(Vec<u8>, NewToken), ConfigError> {
    let now = OffsetDateTime::now_utc();
    let enroll = secret::new_token()?;
    let variables = variables(service, machine, profile, Purpose::Node, machine.generation, &enroll, local)?;
    let (template, snippets) = match &machine.assignment {
        Some(assignment) => (assignment.template.as_str(), assignment.snippets.as_slice()),
        None => ("node", &[][..]),
    };
    let config = ignition::compose(&service.templates, template, &variables, snippets, &profile.ignition_spec)?;
    let token = NewToken {
        hash: secret::digest(&enroll),
        scope: Scope::Enroll,
        machine: machine.id,
        generation: machine.generation,
        purpose: Purpose::Node,
        boot,
        expires: now + NODE_TOKEN_LIFE,
    };
    Ok((config, token))
}

/// Checks an assignment as it is declared: renders everything that it leads to, with tokens that are thrown away.
pub fn check_assignment(service: &Service, machine: &Machine, profile: &Profile) -> Result<(), ConfigError> {
    let local = IpAddr::from([127, 0, 0, 1]);
    node_config(service, machine, profile, Uuid::nil(), local)?;
    Ok(())
}

fn variables(
    service: &Service,
    machine: &Machine,
    profile: &Profile,
    purpose: Purpose,
    generation: u32,
    token: &str,
    local: IpAddr,
) -> Result<Variables, ConfigError> {
    let agent = AgentConfig {
        server: service.addresses.api_url(local),
        ca: service.pki.ca_pem().to_owned(),
        machine: machine.id,
        purpose,
        generation,
        token: token.to_owned(),
    };
    let assignment = machine.assignment.as_ref();
    let hostname = assignment.and_then(|a| a.hostname.clone()).unwrap_or_else(|| machine.name.clone());
    let file = if profile.agent_in_image { None } else { service.agent_file.as_ref() };
    Ok(Variables {
        machine: MachineFacts {
            id: machine.id.to_string(),
            name: machine.name.clone(),
            hostname,
            labels: machine.labels.clone(),
            macs: machine.identity.macs.clone(),
        },
        profile: ProfileFacts {
            name: profile.name.clone(),
            default_user: profile.default_user.clone(),
            karg_prefix: profile.karg_prefix.clone(),
        },
        agent: AgentFiles {
            config: serde_json::to_string_pretty(&agent)?,
            url: file.map(|_| format!("{}/agent/nkd-agent", service.addresses.boot_url(local))),
            sha256: file.map(|f| f.sha256.clone()),
            unit: file.map(|_| in_usr_local(AGENT_UNIT)),
            balancer_unit: file.map(|_| in_usr_local(BALANCER_UNIT)),
            updater_unit: file.map(|_| in_usr_local(UPDATER_UNIT)),
            deadline_unit: file.map(|_| DEADLINE_UNIT.to_owned()),
        },
        ssh_authorized_keys: assignment.map(|a| a.ssh_authorized_keys.clone()).unwrap_or_default(),
        installer_config: None,
        service: service.addresses.host(local),
    })
}

/// A unit of an agent that the image does not carry.
fn in_usr_local(unit: &str) -> String {
    unit.replace("/usr/bin/nkd-agent", "/usr/local/bin/nkd-agent")
}
