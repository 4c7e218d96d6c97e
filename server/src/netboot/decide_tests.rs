//! The two invariants of the boot decision, over random lives of machines, and the table of answers.

use nkd_api::Sha256Digest;
use nkd_api::agent::{Purpose, ReportEvent};
use nkd_api::image::{Artifact, ArtifactKind, Image};
use nkd_api::machine::{Assignment, Identity, LocalBoot, Machine};
use nkd_api::profile::Profile;
use proptest::prelude::*;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::*;
use crate::content::image::profile;
use crate::machine::lifecycle::{BootTaken, Input, new_machine, step};

fn image(name: &str, kinds: &[ArtifactKind]) -> Image {
    let artifact = |kind: &ArtifactKind| Artifact {
        kind: *kind,
        file: kind.as_str().into(),
        sha256: Sha256Digest([1; 32]),
        size: 1,
    };
    Image {
        name: name.into(),
        profile: "lab".into(),
        version: "1".into(),
        architecture: "x86_64".into(),
        artifacts: kinds.iter().map(artifact).collect(),
        imported_at: OffsetDateTime::UNIX_EPOCH,
        source: "test".into(),
        kubernetes: None,
        signed_by: None,
    }
}

const ALL: [ArtifactKind; 4] =
    [ArtifactKind::Kernel, ArtifactKind::Initramfs, ArtifactKind::Rootfs, ArtifactKind::Disk];

fn lab() -> Profile {
    profile::by_name("lab").unwrap()
}

fn assignment(image: &str) -> Assignment {
    Assignment {
        image: image.into(),
        template: "node".into(),
        install_disk: None,
        hostname: None,
        ssh_authorized_keys: Vec::new(),
        kernel_args: Vec::new(),
        snippets: Vec::new(),
        local_boot: LocalBoot::Exit,
    }
}

fn fresh() -> Machine {
    let identity = Identity { macs: vec!["52:54:00:00:00:01".parse().unwrap()], ..Identity::default() };
    new_machine(Uuid::from_u128(1), identity, OffsetDateTime::UNIX_EPOCH)
}

fn boot() -> impl Strategy<Value = Uuid> {
    (1u128..3).prop_map(Uuid::from_u128)
}

fn inputs() -> impl Strategy<Value = Input> {
    let generation = 0u32..5;
    let wiped = generation.clone();
    prop_oneof![
        Just(Input::Accept { name: None, labels: Default::default(), cause: "test".into() }),
        prop_oneof![Just("a"), Just("b"), Just("missing")]
            .prop_map(|i| Input::Assign { assignment: assignment(i), cause: "test".into() }),
        Just(Input::Seen { identity: Identity::default(), address: None, cause: "dhcp", from_os: true }),
        generation.clone().prop_map(|generation| Input::Booted(BootTaken::LiveInstall { generation })),
        Just(Input::Booted(BootTaken::LocalDisk)),
        Just(Input::Booted(BootTaken::Discovery)),
        Just(Input::Booted(BootTaken::NotNow { reason: "test".into() })),
        (generation.clone(), boot()).prop_map(|(generation, boot)| {
            Input::ConfigFetched {
                purpose: Purpose::Install,
                generation,
                boot,
                from: std::net::Ipv4Addr::LOCALHOST.into(),
            }
        }),
        (
            generation.clone(),
            prop_oneof![Just(Purpose::Node), Just(Purpose::Install), Just(Purpose::Discovery)],
            boot()
        )
            .prop_map(|(generation, purpose, boot)| Input::Enrolled { purpose, generation, boot }),
        generation.clone().prop_map(|generation| Input::Reported(ReportEvent::Installed { generation })),
        (generation.clone(), any::<u8>()).prop_map(|(generation, percent)| {
            Input::Reported(ReportEvent::InstallProgress { generation, step: "write".into(), percent })
        }),
        generation.prop_map(|generation| Input::Reported(ReportEvent::Failed {
            generation,
            step: "write".into(),
            reason: "disk".into(),
            log_tail: String::new()
        })),
        Just(Input::Alarm { reason: "token used twice".into() }),
        Just(Input::Release { cause: "test".into() }),
        any::<bool>().prop_map(|now| Input::Reinstall { now, cause: "test".into() }),
        Just(Input::Unassign { cause: "test".into() }),
        wiped.prop_map(|generation| Input::Reported(ReportEvent::Wiped { generation })),
        Just(Input::NotServed { reason: "no address: x".into() }),
        Just(Input::Served),
        Just(Input::Silent { listening_since: OffsetDateTime::UNIX_EPOCH }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens to a machine, in whatever order: once a generation is on its disk, only `Reinstall` and `Unassign`
    /// bring an installation about again; a system is wiped only when it is of an older generation than the wanted one; the generation never falls; a stopped or unaccepted machine gets no installation.
    #[test]
    fn nothing_but_a_raised_generation_leads_to_a_reinstall(inputs in proptest::collection::vec(inputs(), 0..60)) {
        let (a, b, lab) = (image("a", &ALL), image("b", &ALL), lab());
        let mut machine = fresh();
        let mut now = OffsetDateTime::UNIX_EPOCH;
        let mut installed_at: Option<u32> = None;
        for input in inputs {
            now += if matches!(input, Input::Silent { .. }) { Duration::hours(1) } else { Duration::seconds(1) };
            let before = machine.clone();
            let raises = matches!(input, Input::Reinstall { .. } | Input::Unassign { .. });
            let first = matches!(input, Input::Assign { .. }) && before.generation == 0;
            if let Ok((after, _)) = step(machine.clone(), input, now) {
                machine = after;
            }
            if raises || first {
                prop_assert!(machine.generation - before.generation <= 1);
            } else {
                prop_assert_eq!(machine.generation, before.generation);
            }
            prop_assert!(machine.steps.len() <= 9, "steps grow: {:?}", machine.steps);
            prop_assert!(machine.installed_generation.unwrap_or(0) <= machine.generation);
            prop_assert!(machine.wipe_generation.is_none_or(|wipe| wipe < machine.generation));
            if machine.installed_generation == Some(machine.generation) {
                installed_at = Some(machine.generation);
            }
            let assigned = machine.assignment.as_ref().and_then(|x| [&a, &b].into_iter().find(|i| i.name == x.image));
            let known = Known { machine: Some(&machine), assigned: assigned.map(|i| (i, &lab)), discovery: Some((&b, &lab)) };
            let decision = decide(&BootRequest::default(), known);
            if let Answer::LiveInstall { generation, .. } = decision.answer {
                prop_assert!(installed_at.is_none_or(|installed| installed < generation), "reinstalled generation {}", generation);
                prop_assert!(machine.accepted && machine.assignment.is_some() && machine.stopped.is_none());
                prop_assert_eq!(generation, machine.generation);
            }
            if machine.stopped.is_some() {
                prop_assert_eq!(decision.answer.name(), "not-now");
            }
            prop_assert!(!decision.reason.is_empty());
        }
    }
}

#[test]
fn the_table_of_answers() {
    let (full, live, lab) = (image("a", &ALL), image("a", &ALL[..3]), lab());
    let x86 = BootRequest { architecture: Some("x86_64".into()) };
    let arm = BootRequest { architecture: Some("aarch64".into()) };
    let unknown = Known { machine: None, assigned: Some((&full, &lab)), discovery: None };
    // An unknown machine never gets a cluster's configuration, whatever else is known.
    assert_eq!(decide(&x86, unknown).answer, Answer::NotNow);
    let discovery = Known { discovery: Some((&live, &lab)), ..unknown };
    assert_eq!(decide(&x86, discovery).answer.name(), "discovery");
    assert_eq!(decide(&arm, discovery).answer, Answer::NotNow);

    let mut machine = fresh();
    let known = |machine: &'static Machine| Known { machine: Some(machine), ..unknown };
    let leak = |machine: &Machine| -> &'static Machine { Box::leak(Box::new(machine.clone())) };
    assert!(decide(&x86, known(leak(&machine))).reason.contains("not accepted"));
    machine.accepted = true;
    assert!(decide(&x86, known(leak(&machine))).reason.contains("nothing is assigned"));
    machine.assignment = Some(assignment("a"));
    machine.generation = 1;
    let ready = leak(&machine);
    assert_eq!(decide(&x86, known(ready)).answer, Answer::LiveInstall { image: &full, profile: &lab, generation: 1 });
    assert!(decide(&arm, known(ready)).reason.contains("the machine is aarch64"));
    assert!(decide(&x86, Known { assigned: None, ..known(ready) }).reason.contains("not in the store"));
    assert!(decide(&x86, Known { assigned: Some((&live, &lab)), ..known(ready) }).reason.contains("no disk image"));
    machine.installed_generation = Some(1);
    assert_eq!(decide(&x86, known(leak(&machine))).answer, Answer::LocalDisk { how: LocalBoot::Exit });
    machine.stopped = Some("alarm".into());
    assert_eq!(decide(&x86, known(leak(&machine))).answer, Answer::NotNow);
}
