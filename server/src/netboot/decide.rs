//! The boot decision. Pure: what a machine is told follows from its record, its request and the policy alone.
//!
//! | record | answer |
//! |---|---|
//! | stopped after an alarm | not now |
//! | none, not accepted, or nothing assigned | discovery image, or not now when there is none |
//! | the wanted generation is on its disk | local disk |
//! | otherwise | live install, or not now when image or identity do not allow it |
//!
//! A machine whose disk holds the wanted generation is never installed again; only `reinstall` raises the
//! generation. An unknown machine never gets a configuration of a cluster. Both are property-tested.

use nkd_api::image::{ArtifactKind, Image};
use nkd_api::machine::{LocalBoot, Machine, Phase};
use nkd_api::profile::Profile;

/// What the request says of the machine's abilities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootRequest {
    /// `x86_64`, `aarch64`, or not known.
    pub architecture: Option<String>,
}

/// What is known beside the request.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The record of the machine, if there is one.
    pub machine: Option<&'a Machine>,
    /// The image of its assignment, if it is in the store, with its profile.
    pub assigned: Option<(&'a Image, &'a Profile)>,
    /// The image for machines without an assignment.
    pub discovery: Option<(&'a Image, &'a Profile)>,
}

/// An answer with its reason.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision<'a> {
    /// What the machine is told.
    pub answer: Answer<'a>,
    /// Why, in one sentence.
    pub reason: String,
}

/// What the machine is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer<'a> {
    /// Boot this image, tell what you are, wait.
    Discovery {
        /// Image.
        image: &'a Image,
        /// Its profile.
        profile: &'a Profile,
    },
    /// Boot this image and install.
    LiveInstall {
        /// Image.
        image: &'a Image,
        /// Its profile.
        profile: &'a Profile,
        /// Generation that is being installed.
        generation: u32,
    },
    /// Boot your disk.
    LocalDisk {
        /// How that is said to this machine.
        how: LocalBoot,
    },
    /// Ask again later.
    NotNow,
}

impl Answer<'_> {
    /// The word for it in the API.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Discovery { .. } => "discovery",
            Self::LiveInstall { .. } => "live-install",
            Self::LocalDisk { .. } => "local-disk",
            Self::NotNow => "not-now",
        }
    }
}

/// Decides.
#[must_use]
pub fn decide<'a>(request: &BootRequest, known: Known<'a>) -> Decision<'a> {
    let not_now = |reason: String| Decision { answer: Answer::NotNow, reason };
    let Some(machine) = known.machine else {
        return discover(request, known, "nobody knows this machine yet".into());
    };
    let name = &machine.name;
    if let Some(reason) = &machine.stopped {
        return not_now(format!("{name} is stopped: {reason}"));
    }
    if !machine.accepted {
        return discover(request, known, format!("{name} is not accepted yet: nkd machine accept {name}"));
    }
    let Some(assignment) = &machine.assignment else {
        return discover(
            request,
            known,
            format!("nothing is assigned to {name}: nkd machine assign {name} --image NAME"),
        );
    };
    let generation = machine.generation;
    if machine.installed_generation.is_some_and(|installed| installed >= generation) {
        return Decision {
            answer: Answer::LocalDisk { how: assignment.local_boot },
            reason: format!("generation {generation} is on the disk of {name}"),
        };
    }
    let Some((image, profile)) = known.assigned else {
        return not_now(format!("the image `{}` of {name} is not in the store: nkd image import", assignment.image));
    };
    if let Some(problem) = unbootable(image, request) {
        return not_now(format!("{name} cannot boot the image `{}`: {problem}", image.name));
    }
    if image.artifact(ArtifactKind::Disk).is_none() {
        return not_now(format!("the image `{}` has no disk image to install", image.name));
    }
    let why = match &machine.phase {
        Phase::Failed { step, reason } => {
            format!("generation {generation} failed at {step} ({reason}) and is tried again")
        }
        Phase::Booting | Phase::Installing => format!("generation {generation} was begun and is begun again"),
        _ => format!("generation {generation} is not on the disk yet"),
    };
    Decision { answer: Answer::LiveInstall { image, profile, generation }, reason: why }
}

fn discover<'a>(request: &BootRequest, known: Known<'a>, why: String) -> Decision<'a> {
    match known.discovery {
        Some((image, profile)) => match unbootable(image, request) {
            None => Decision { answer: Answer::Discovery { image, profile }, reason: why },
            Some(problem) => Decision {
                answer: Answer::NotNow,
                reason: format!("{why}; it cannot boot the discovery image `{}`: {problem}", image.name),
            },
        },
        None => Decision { answer: Answer::NotNow, reason: why },
    }
}

fn unbootable(image: &Image, request: &BootRequest) -> Option<String> {
    for kind in [ArtifactKind::Kernel, ArtifactKind::Initramfs, ArtifactKind::Rootfs] {
        if image.artifact(kind).is_none() {
            return Some(format!("it has no {}", kind.as_str()));
        }
    }
    match &request.architecture {
        Some(architecture) if *architecture != image.architecture => {
            Some(format!("it is for {}, the machine is {architecture}", image.architecture))
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
