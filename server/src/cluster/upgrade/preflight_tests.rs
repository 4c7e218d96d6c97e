//! What stands in the way of an upgrade, and what does not.

use nkd_api::update::MaxUnavailable;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::cluster::plan::tests::cluster;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn release(number: u32, kubernetes: &str) -> Release {
    Release {
        number,
        version: format!("{number}.0"),
        commit: format!("c{number}"),
        reference: "lab/x86_64/stable".into(),
        kubernetes: Some(kubernetes.into()),
        notes: String::new(),
        published_at: NOW,
        signed_by: None,
        promoted_from: None,
        barrier: false,
        dead_end: None,
        rollout_minutes: 0,
    }
}

/// A healthy cluster of three and two, all on the first of two releases.
struct Scene {
    record: Record,
    channel: Channel,
    order: UpgradeOrder,
    seen: Seen,
}

impl Scene {
    fn new() -> Self {
        let mut record = Record::new(Uuid::nil(), cluster(3, 2), NOW);
        record.health = Health::Healthy;
        record.cluster.spec.housekeeper.enabled = true;
        record.cluster.spec.os.profile = "lab".into();
        record.members.iter_mut().for_each(|member| member.state = MemberState::Ready);
        let names: Vec<String> = record.members.iter().map(|member| member.hostname.clone()).collect();
        let all = |value: &str| names.iter().map(|name| (name.clone(), value.to_owned())).collect();
        let channel = Channel {
            name: "stable".into(),
            profile: "lab".into(),
            architecture: "x86_64".into(),
            releases: vec![release(1, "v1.20.2"), release(2, "v1.21.0")],
        };
        let room = |path: &str, mebibytes: u64| Room { path: path.to_owned(), free_bytes: mebibytes << 20 };
        let room = [room("/sysroot", 2048), room("/boot", 128), room("/var", 1024)];
        let room = names.iter().map(|name| (name.clone(), room.to_vec())).collect();
        let servers = ["cp1", "cp2", "cp3"].map(|name| (name.to_owned(), "v1.20.2".to_owned())).into();
        let (kubelets, commits) = (all("v1.20.2"), all("c1"));
        let seen = Seen { kubelets, servers, commits, room, operator: true, ..Seen::default() };
        Self { record, channel, order: UpgradeOrder::default(), seen }
    }

    fn plan(&self) -> Planned {
        plan(&self.record, &self.channel, &self.order, &self.seen, 4, "ada", NOW).unwrap()
    }

    /// It is refused for this reason, and for no other.
    fn refused(&self, why: &str) {
        let planned = self.plan();
        let refused: Vec<_> = planned.findings.iter().filter(|finding| finding.refused).collect();
        assert!(refused.len() == 1 && refused[0].message.contains(why), "{why}: {refused:?}");
        assert!(!may_begin(&planned.findings));
    }

    fn known(&self, what: &str) {
        let planned = self.plan();
        assert!(may_begin(&planned.findings), "{:?}", planned.findings);
        assert!(planned.findings.iter().any(|finding| finding.message.contains(what)), "{:?}", planned.findings);
    }
}

#[test]
fn a_healthy_cluster_goes_to_the_newest_release_control_planes_first() {
    let planned = Scene::new().plan();
    assert_eq!(planned.findings, []);
    assert_eq!(planned.order, ["cp1", "cp2", "cp3", "w1", "w2"]);
    let upgrade = planned.upgrade;
    assert_eq!((upgrade.number, upgrade.order.release, upgrade.state), (4, Some(2), UpgradeState::Preparing));
    assert_eq!((upgrade.commit.as_deref(), upgrade.kubernetes.as_deref()), (Some("c2"), Some("v1.21.0")));
    assert_eq!((upgrade.from_kubernetes.as_str(), upgrade.order.drain_seconds), ("v1.20.2", Some(600)));
}

#[test]
fn how_many_may_be_away_is_what_the_order_says_else_what_the_file_does() {
    let mut scene = Scene::new();
    let away = |scene: &Scene| scene.plan().upgrade.order.max_unavailable;
    scene.record.cluster.spec.housekeeper.max_unavailable = MaxUnavailable::Percent(25);
    assert_eq!(away(&scene), Some(MaxUnavailable::Percent(25)));
    scene.order.max_unavailable = Some(MaxUnavailable::Count(2));
    assert_eq!(away(&scene), Some(MaxUnavailable::Count(2)));
}

#[test]
fn halves_of_a_release() {
    let mut scene = Scene::new();
    scene.order.part = Part::Kubernetes;
    assert_eq!(scene.plan().upgrade.commit, None);
    scene.channel.releases[1].kubernetes = None;
    scene.refused("does not say which Kubernetes it holds");
    // Else a kubelet might run ahead of its API servers.
    scene.order.part = Part::Both;
    scene.refused("publish it once more with --kubernetes, or upgrade --os-only if that is v1.20.2 still");
    scene.order.part = Part::Os;
    scene.known("refuse it unless its kubelet is of the minor version of v1.20.2");
    let planned = scene.plan();
    assert!(may_begin(&planned.findings) && planned.upgrade.kubernetes.is_none() && planned.upgrade.commit.is_some());
    scene.channel.releases[1].kubernetes = Some("v1.21.0".into());
    scene.refused("upgrade both");
}

#[test]
fn what_is_wrong_with_the_cluster_stands_in_the_way() {
    type Spoil = (&'static str, fn(&mut Scene));
    let spoil: [Spoil; 11] = [
        ("is being taken apart", |scene| scene.record.destroying = true),
        ("cp1 is not Ready", |scene| {
            scene.record.members.iter_mut().find(|m| m.hostname == "cp1").unwrap().state = MemberState::Joined;
        }),
        ("does not answer", |scene| {
            scene.record.health = Health::Unreachable { since: NOW, reason: "no route".into() };
        }),
        ("has no housekeeper", |scene| scene.record.cluster.spec.housekeeper.enabled = false),
        ("housekeeper does not run", |scene| scene.seen.operator = false),
        ("etcd: cp2 has no leader", |scene| scene.seen.etcd = vec!["cp2 has no leader".into()]),
        ("w1 may restart by a lease of the group `rack` until 1970-01-01 00:00 UTC", |scene| {
            let (group, id) = ("rack".into(), "0a0b".into());
            let lease = Lease { group, id, address: None, fencing: 1, since: NOW, expires: NOW };
            scene.seen.leases = vec![("w1".into(), lease)];
            scene.refused("or `nkd lock release rack 0a0b` if it does not come back");
        }),
        ("the commit of release 2 is not here: `nkd channel publish stable` it again", |scene| {
            scene.seen.missing = true
        }),
        ("is a dead end: it eats disks", |scene| {
            scene.order.release = Some(2);
            scene.channel.releases[1].dead_end = Some("it eats disks".into());
        }),
        ("is for nestos", |scene| scene.channel.profile = "nestos".into()),
        ("extensions/v1beta1 ingresses is in use", |scene| {
            scene.seen.deprecated = vec![in_use(false)];
        }),
    ];
    for (why, spoil) in spoil {
        let mut scene = Scene::new();
        spoil(&mut scene);
        scene.refused(why);
    }
    let mut scene = Scene::new();
    scene.record.health = Health::Degraded { reasons: vec!["x".into()] };
    scene.known("is not healthy");
}

fn in_use(collected: bool) -> Deprecated {
    Deprecated { name: "extensions/v1beta1 ingresses".into(), removed_in: 21, collected }
}

#[test]
fn an_api_that_goes_is_said_to_be_found_and_may_be_ignored() {
    let mut scene = Scene::new();
    scene.seen.deprecated = vec![in_use(false)];
    scene.refused("k8s.io/deprecated); --ignore-removed-apis goes on");
    scene.order.ignore_removed_apis = true;
    scene.known("(--ignore-removed-apis): who asks will get nothing");
    // A stock cluster is no reason to refuse.
    let mut scene = Scene::new();
    scene.seen.deprecated = vec![in_use(true)];
    scene.known("Kubernetes' own garbage collector reads it");
    // It says nothing of an upgrade that leaves Kubernetes as it is.
    scene.channel.releases[1].kubernetes = Some(scene.record.cluster.spec.kubernetes.version.clone());
    scene.order.part = Part::Os;
    assert_eq!(scene.plan().findings, []);
    let mut scene = Scene::new();
    scene.seen.not_asked = vec!["cp2".into(), "cp3".into()];
    scene.known("not known of the API servers of cp2, cp3");
}

#[test]
fn a_barrier_comes_first_and_an_older_release_is_told() {
    let mut scene = Scene::new();
    scene.channel.releases.push(release(3, "v1.21.0"));
    scene.channel.releases[1].barrier = true;
    for commit in scene.seen.commits.values_mut().skip(1) {
        "c2".clone_into(commit);
    }
    scene.refused("has to go to the barrier 2 first");
    scene.channel.releases[1].dead_end = Some("it eats disks".into());
    assert!(may_begin(&scene.plan().findings), "a dead end holds up nobody");
    scene.channel.releases[1].dead_end = None;
    // What nobody knows is said.
    scene.seen.commits.values_mut().for_each(|commit| "another".clone_into(commit));
    scene.seen.commits.remove("w2");
    scene.known("whether they have passed the barrier 2 is not known of cp1, cp2, cp3, w1, w2");
    scene.seen.commits.values_mut().for_each(|commit| "c2".clone_into(commit));
    scene.known("barrier 2 is not known of w2:");
    scene.seen.commits.insert("w2".into(), "c2".into());
    scene.order.release = Some(2);
    assert!(may_begin(&scene.plan().findings));
    scene.seen.commits.values_mut().for_each(|commit| "c3".clone_into(commit));
    scene.known("release 2 is older than release 3");
}

#[test]
fn releases_that_are_not_there() {
    let mut scene = Scene::new();
    let asked = |scene: &Scene| super::release(&scene.channel, &scene.order).map(|release| release.number);
    scene.order.release = Some(9);
    assert_eq!(asked(&scene), Err(NotAsked::Missing { channel: "stable".into(), number: 9 }));
    scene.order.release = None;
    scene.channel.releases[1].dead_end = Some("x".into());
    assert_eq!(asked(&scene), Ok(1));
    scene.channel.releases.clear();
    assert_eq!(asked(&scene), Err(NotAsked::NoRelease("stable".into())));
}

#[test]
fn checks_on_a_coredns_that_is_left_out_are_ignored() {
    let mut scene = Scene::new();
    scene.order.ignore_preflight_errors = vec!["ImagePull".into()];
    assert_eq!(scene.plan().upgrade.order.ignore_preflight_errors, ["ImagePull"]);
    scene.record.cluster.spec.kubernetes.skip_phases = vec!["addon/coredns".into()];
    let wanted = ["CoreDNSMigration", "CoreDNSUnsupportedPlugins", "ImagePull"];
    assert_eq!(scene.plan().upgrade.order.ignore_preflight_errors, wanted);
}

#[test]
fn a_node_without_room_for_a_second_system_stands_in_the_way() {
    for (place, free, why) in [
        (0, 1984, "w2: 1984 MiB are free in /sysroot, and a second system takes 2048 MiB"),
        (1, 64, "w2: 64 MiB are free in /boot, and a second kernel takes 100 MiB"),
        (2, 960, "w2: 960 MiB are free in /var, and another Kubernetes with its images takes 1024 MiB"),
    ] {
        let mut scene = Scene::new();
        scene.seen.room.get_mut("w2").unwrap()[place].free_bytes = free << 20;
        scene.refused(why);
    }
    let mut scene = Scene::new();
    scene.seen.room.get_mut("w2").unwrap()[0].free_bytes = 0;
    scene.order.part = Part::Kubernetes;
    assert!(may_begin(&scene.plan().findings), "the system stays");
    let mut scene = Scene::new();
    scene.seen.room.remove("w1");
    scene.known("not known of w1:");
}

#[test]
fn what_has_no_file_system_of_its_own_takes_the_systems_room() {
    // Which ones w2 has, how much is free there, and what is said.
    for (has, free, why) in [
        (
            &["/sysroot", "/boot"][..],
            3071,
            Some(
                "w2: 3071 MiB are free in /sysroot, and a second system and another Kubernetes with its images take 3072 MiB",
            ),
        ),
        (&["/sysroot", "/boot"], 3072, None),
        (&["/", "/var"], 2147, Some("in /, and a second system and a second kernel take 2148 MiB")),
        (
            &["/sysroot"],
            3171,
            Some(
                "in /sysroot, and a second system and a second kernel and another Kubernetes with its images take 3172 MiB",
            ),
        ),
        (&["/sysroot"], 3172, None),
    ] {
        let mut scene = Scene::new();
        let room = has.iter().map(|path| Room { path: (*path).to_owned(), free_bytes: free << 20 });
        scene.seen.room.insert("w2".into(), room.collect());
        match why {
            Some(why) => scene.refused(why),
            None => assert!(may_begin(&scene.plan().findings), "{has:?} {free}"),
        }
    }
    let mut scene = Scene::new();
    scene.order.part = Part::Kubernetes;
    let room = |mebibytes: u64| vec![Room { path: "/".into(), free_bytes: mebibytes << 20 }];
    scene.seen.room.insert("w2".into(), room(1024));
    assert!(may_begin(&scene.plan().findings));
    scene.seen.room.insert("w2".into(), room(1023));
    scene.refused("w2: 1023 MiB are free in /, and another Kubernetes with its images takes 1024 MiB");
}

#[test]
fn what_an_upgrade_has_left_half_way_counts_with_what_it_runs() {
    let half_way = || {
        let mut scene = Scene::new();
        scene.channel.releases = vec![release(1, "v1.20.2"), release(2, "v1.21.0")];
        scene.seen.servers.insert("cp2".into(), "v1.21.0".into());
        scene.seen.kubelets.insert("cp2".into(), "v1.21.0".into());
        scene
    };
    assert!(may_begin(&half_way().plan().findings), "it goes on to the same version");
    let back = |scene: &Scene| {
        let found = scene.plan().findings.into_iter().filter(|finding| finding.refused);
        found.map(|finding| finding.message).collect::<Vec<_>>().join("\n")
    };
    let mut scene = half_way();
    scene.channel.releases[1].kubernetes = Some("v1.20.3".into());
    let told = back(&scene);
    assert!(told.contains("the API server of cp2 runs Kubernetes v1.21.0 already: kubeadm does not go back"), "{told}");
    assert!(told.contains("the kubelet of cp2 is v1.21.0 already: it does not go back to v1.20.3"), "{told}");
    // A system alone would take the kubelet back.
    scene.order.part = Part::Os;
    scene.channel.releases[1].kubernetes = Some("v1.20.2".into());
    scene.refused("the kubelet of cp2 is v1.21.0 already");
    // The others have not got there.
    let mut scene = half_way();
    scene.channel.releases[1].kubernetes = Some("v1.22.0".into());
    let told = back(&scene);
    assert!(told.contains("the API server of cp1 runs Kubernetes v1.20.2, and v1.22.0 is asked for"), "{told}");
    // One that has not answered runs what the record says.
    let mut scene = half_way();
    scene.seen.servers.values_mut().for_each(|version| "v1.21.0".clone_into(version));
    scene.seen.kubelets.values_mut().for_each(|version| "v1.21.0".clone_into(version));
    scene.channel.releases[1].kubernetes = Some("v1.22.0".into());
    assert!(may_begin(&scene.plan().findings));
    scene.seen.servers.remove("cp3");
    let name = scene.record.name().to_owned();
    scene.refused(&format!("{name} runs Kubernetes v1.20.2, and v1.22.0 is asked for"));
}

#[test]
fn what_was_asked_for_earlier_is_held_against_what_is_there_now() {
    let mut scene = Scene::new();
    let upgrade = scene.plan().upgrade;
    let now = |scene: &Scene| refusals(&scene.record, &scene.channel, &upgrade, &scene.seen);
    assert_eq!(now(&scene).unwrap(), Vec::<String>::new());
    scene.seen.operator = false;
    scene.channel.releases[1].dead_end = Some("it eats disks".into());
    let told = now(&scene).unwrap().join("\n");
    assert!(told.contains("housekeeper does not run") && told.contains("is a dead end: it eats disks"), "{told}");
    scene.channel.releases.clear();
    assert_eq!(now(&scene), Err(NotAsked::Missing { channel: "stable".into(), number: 2 }));
}

#[test]
fn a_budget_that_can_never_be_met_stands_in_the_way_unless_pods_are_deleted() {
    let mut scene = Scene::new();
    let why = "the disruption budget web never lets shop/web-1 go".into();
    scene.seen.stuck = vec![Stuck { node: "w1".into(), why, way: "change the budget" }];
    scene.refused("w1: the disruption budget web never lets shop/web-1 go; change the budget, or --force-drain");
    scene.order.force_drain = true;
    scene.known("it is deleted (--force-drain)");
}

#[test]
fn nodes_that_run_it_already_are_named_and_keep_their_api() {
    let mut scene = Scene::new();
    let said = |scene: &Scene| {
        let findings = scene.plan().findings.into_iter().map(|finding| finding.message);
        findings.filter(|message| message.contains("run it already")).collect::<String>()
    };
    assert_eq!(said(&scene), "");
    for node in ["cp1", "w1"] {
        scene.seen.commits.insert(node.into(), "c2".into());
        scene.seen.kubelets.insert(node.into(), "v1.21.0".into());
    }
    assert_eq!(said(&scene), "w1 run it already: they are only looked at", "its API server is the old one");
    scene.seen.servers.insert("cp1".into(), "v1.21.0".into());
    assert_eq!(said(&scene), "cp1, w1 run it already: they are only looked at");
    scene.record.members.retain(|member| !["cp2", "cp3"].contains(&member.hostname.as_str()));
    assert!(!scene.plan().findings.iter().any(|finding| finding.message.contains("its API is away")));
}

#[test]
fn a_release_that_nobody_has_named_leads_no_node_back() {
    let mut scene = Scene::new();
    let [one, two] = [1, 2].map(|number| scene.channel.release(number).unwrap().clone());
    assert_eq!(leads_back(&scene.channel, &one, &scene.seen), None);
    scene.seen.commits.insert("w2".into(), "c2".into());
    assert_eq!(leads_back(&scene.channel, &two, &scene.seen), None);
    let found = leads_back(&scene.channel, &one, &scene.seen).unwrap();
    assert!(found.refused && found.message.contains("w2 runs release 2: give --release 1"), "{found:?}");
}

#[test]
fn a_snapshot_comes_first_unless_somebody_has_one() {
    let mut scene = Scene::new();
    let wanted = scene.plan().upgrade.snapshot.unwrap();
    assert!(wanted.since == NOW && !wanted.is_taken());
    scene.order.skip_snapshot = true;
    assert_eq!(scene.plan().upgrade.snapshot, None);
    scene.known("--skip-snapshot");
}

#[test]
fn the_window_is_the_orders_else_the_files() {
    let mut scene = Scene::new();
    let window = |scene: &Scene| scene.plan().upgrade.order.window.map(|window| window.to_string());
    assert_eq!(window(&scene), None);
    scene.record.cluster.spec.housekeeper.window = Some("sat,sun 22:30+4h".into());
    assert_eq!(window(&scene).as_deref(), Some("sat,sun 22:30+4h"));
    scene.order.window = Some("01:00+2h".parse().unwrap());
    assert_eq!(window(&scene).as_deref(), Some("01:00+2h"));
}

proptest! {
    /// One minor at a time for the oldest API server, back for none of them and for no kubelet; and no kubelet is further behind than
    /// kubeadm takes. What the record says is the past, once every API server has answered.
    #[test]
    fn versions_go_up_by_one_minor_at_most(
        recorded in 18u64..34, to in (18u64..36, 0u64..3), kubelet in (16u64..34, 0u64..3),
        servers in proptest::collection::vec((18u64..34, 0u64..3), 3), near in any::<bool>(), silent in any::<bool>(),
    ) {
        let mut scene = Scene::new();
        // Half of them close to each other, where the limits are.
        let close = |(minor, patch): (u64, u64)| if near { (to.0 - 2 + minor % 4, patch) } else { (minor, patch) };
        let written = |(minor, patch): (u64, u64)| format!("v1.{minor}.{patch}");
        let (kubelet, mut running) = (close(kubelet), servers.into_iter().map(close).collect::<Vec<_>>());
        scene.record.cluster.spec.kubernetes.version = format!("v1.{recorded}.0");
        scene.channel.releases[1].kubernetes = Some(written(to));
        scene.seen.kubelets.values_mut().for_each(|version| *version = written(kubelet));
        scene.seen.servers.values_mut().zip(&running).for_each(|(version, is)| *version = written(*is));
        if silent {
            scene.seen.servers.remove("cp3");
            running[2] = (recorded, 0);
        }
        let begins = may_begin(&scene.plan().findings);
        let lag = if to.0 < 29 { 1 } else { 3 };
        let oldest = running.iter().map(|(minor, _)| minor).min().unwrap();
        let goes_up = running.iter().all(|is| to >= *is) && to.0 <= oldest + 1;
        prop_assert_eq!(begins, goes_up && kubelet <= to && kubelet.0 + lag >= to.0);
    }

    /// Where kubeadm does not run, its limit is none.
    #[test]
    fn a_system_alone_leaves_the_kubelets_minor_to_the_api_servers(behind in 0u64..4) {
        let mut scene = Scene::new();
        scene.order.part = Part::Os;
        scene.record.cluster.spec.kubernetes.version = "v1.24.0".into();
        scene.channel.releases[1].kubernetes = Some("v1.24.0".into());
        scene.seen.kubelets.values_mut().for_each(|version| *version = format!("v1.{}.0", 24 - behind));
        prop_assert!(may_begin(&scene.plan().findings));
    }
}
