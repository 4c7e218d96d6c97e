//! What updates ask for, whichever resource they were written as (pure).

use kube::api::DynamicObject;
use nkd_api::update::{
    Day, DrainPolicy, FoundImage, MaxUnavailable, NodeState, OsRelease, Phase, PlaneAtWork, RAISE_RETRY, Release,
    UpdateSpec, UpdateStatus, UpstreamSpec, Window,
};
use serde::Deserialize;
use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, Weekday};

use crate::image::{self, Named};
use crate::seen::NodeSeen;
use crate::tell;

/// Which resource an update was written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `nkd.io`.
    Ours,
    /// `housekeeper.io`.
    Upstream,
}

/// An update as the operator goes by it.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// Where it came from.
    pub source: Source,
    /// Its namespace, if it has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
    /// Its version, which each write changes.
    pub version: String,
    /// When it was made.
    pub created: OffsetDateTime,
    /// What it asks for. An image that it names by a tag is named by its digest here, as soon as that is known.
    pub spec: UpdateSpec,
    /// The image, in full, that it names by a tag.
    pub tagged: Option<String>,
    /// When nodes may begin; nothing: at any time.
    pub hours: Option<Hours>,
    /// Why it cannot be followed.
    pub problem: Option<String>,
    /// What was told about it last.
    pub status: UpdateStatus,
}

/// A window in minutes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hours {
    days: Vec<Weekday>,
    start: i64,
    length: i64,
}

/// What a label that says what a node is for begins with.
const ROLE: &str = "node-role.kubernetes.io/";

/// A Node that was deleted and registers again has no role by its labels: those that some update has at work are control planes,
/// unless they are something else by now.
pub fn remember_roles(wishes: &[Wish], nodes: &mut [NodeSeen]) {
    let is_plane = |node: &&mut NodeSeen| wishes.iter().any(|wish| wish.plane(&node.name).is_some());
    let has_role = |node: &NodeSeen| node.labels.keys().any(|label| label.starts_with(ROLE));
    for node in nodes.iter_mut().filter(|node| !node.control_plane && !has_role(node)).filter(is_plane) {
        (node.control_plane, node.unlabelled) = (true, true);
    }
}

impl Wish {
    /// Reads a resource. What is wrong in it is in [`Wish::problem`]; nothing: it is no resource of an API server.
    #[must_use]
    pub fn read(source: Source, object: &DynamicObject) -> Option<Self> {
        let metadata = &object.metadata;
        let created = serde_json::to_value(metadata.creation_timestamp.as_ref()?).ok()?;
        let created = OffsetDateTime::parse(created.as_str()?, &Rfc3339).ok()?;
        let given = object.data.get("spec").cloned().unwrap_or(Value::Null);
        let read = match source {
            Source::Ours => UpdateSpec::deserialize(given),
            Source::Upstream => UpstreamSpec::deserialize(given).map(from_upstream),
        };
        let (spec, mut problem) = match read {
            Ok(spec) => (spec, None),
            Err(error) => (UpdateSpec::default(), Some(format!("spec does not read: {error}"))),
        };
        let hours = match spec.window.as_ref().map(Hours::read).transpose() {
            Ok(hours) => hours,
            Err(text) => {
                problem = problem.or(Some(text));
                None
            }
        };
        let problem = problem.or_else(|| fault(source, &spec));
        let status = object.data.get("status").cloned().unwrap_or(Value::Null);
        let mut wish = Self {
            source,
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone()?,
            uid: metadata.uid.clone()?,
            generation: metadata.generation.unwrap_or_default(),
            version: metadata.resource_version.clone().unwrap_or_default(),
            created,
            spec,
            tagged: None,
            hours,
            problem,
            status: UpdateStatus::deserialize(status).unwrap_or_default(),
        };
        wish.name_image();
        Some(wish)
    }

    /// Names the image by its digest, wherever that is known. What it is read from has to be as its owner wrote it.
    pub(crate) fn name_image(&mut self) {
        self.tagged = None;
        let Some(os) = &mut self.spec.release.os else { return };
        match os.image.as_deref().map(image::read) {
            Some(Ok(Named::Digest(name))) => os.image = Some(name),
            Some(Ok(Named::Tag(name))) => {
                self.tagged = Some(name.to_string());
                if let Some(found) = self.found() {
                    let named = name.at(&found.digest);
                    self.spec.release.os = self.spec.release.os.take().map(|os| OsRelease { image: Some(named), ..os });
                }
            }
            // It is a problem already, or there is none.
            Some(Err(_)) | None => {}
        }
    }

    /// What the image that it names by a tag was when it was looked up. What was found for another name is none of it.
    #[must_use]
    pub fn found(&self) -> Option<&FoundImage> {
        let found = self.status.image.as_ref().filter(|found| image::is_digest(&found.digest))?;
        (self.tagged.as_ref() == Some(&found.asked)).then_some(found)
    }

    /// The image that has to be looked up before anything begins.
    #[must_use]
    pub fn unknown(&self) -> Option<&str> {
        self.tagged.as_deref().filter(|_| self.found().is_none())
    }

    /// What is known of a control plane that it has at work.
    #[must_use]
    pub fn plane(&self, name: &str) -> Option<&PlaneAtWork> {
        self.status.planes_at_work.iter().find(|plane| plane.name == name)
    }

    /// It is for this node.
    #[must_use]
    pub fn chooses(&self, node: &NodeSeen) -> bool {
        self.spec.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
    }

    /// Control planes that it has at work, and whose Nodes were deleted, unless somebody has said since that it is to go on. One
    /// may be back without the labels that choose it.
    #[must_use]
    pub fn missing(&self, nodes: &[NodeSeen]) -> Vec<&PlaneAtWork> {
        let began = |name: &str| {
            let told = self.status.nodes.iter().find(|told| told.name == name);
            told.is_some_and(|told| tell::at_work(told.state) || told.state == NodeState::Failed)
        };
        let is_missing = |plane: &&PlaneAtWork| match nodes.iter().find(|node| node.name == plane.name) {
            Some(node) => !self.chooses(node) && node.is_blank() && began(&node.name),
            None => true,
        };
        let all = self.status.planes_at_work.iter().filter(is_missing);
        all.filter(|plane| !self.spec.abort && plane.retry >= self.spec.retry).collect()
    }

    /// Its name for people and for nodes: with its namespace, if it has one.
    #[must_use]
    pub fn full_name(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.clone(),
        }
    }

    /// How its owner asks for another attempt: upstream's resource has no field for it, and nodes refuse what they have given
    /// up until somebody asks for a retry.
    #[must_use]
    pub fn again(&self) -> &'static str {
        match self.source {
            Source::Ours => RAISE_RETRY,
            Source::Upstream => "replace this Update by one of nkd.io that says `retry: 1`",
        }
    }

    /// True when it has come to its end, and nothing was asked for since. An update that is complete looks at its nodes no
    /// more: an older one would otherwise fight a newer one for every node that joins.
    #[must_use]
    pub fn is_finished(&self, all: &[Self]) -> bool {
        let told = &self.status;
        let same_release = told.release.as_ref() == Some(&self.spec.release);
        let newer = || all.iter().any(|other| other.uid != self.uid && other.order() > self.order());
        match told.phase {
            Phase::Complete => same_release && (told.observed_generation == self.generation || newer()),
            Phase::Aborted => same_release && self.spec.abort,
            _ => false,
        }
    }

    /// The older goes first.
    #[must_use]
    pub fn order(&self) -> (OffsetDateTime, &str) {
        (self.created, &self.uid)
    }
}

fn from_upstream(spec: UpstreamSpec) -> UpdateSpec {
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let with_v = |version: String| if version.starts_with('v') { version } else { format!("v{version}") };
    let kubernetes = filled(spec.kube_version).map(with_v);
    let image = filled(spec.os_image_url);
    let name = [image.as_deref(), kubernetes.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(", ");
    let os = image.map(|image| OsRelease { image: Some(image), ..OsRelease::default() });
    let mut wish = UpdateSpec { release: Release { name, os, kubernetes }, ..UpdateSpec::default() };
    wish.max_unavailable = MaxUnavailable::Count(spec.max_unavailable.filter(|count| *count > 0).unwrap_or(1));
    if spec.evict_pod_force {
        wish.strategy.drain.policy = DrainPolicy::Force;
    }
    wish
}

fn fault(source: Source, spec: &UpdateSpec) -> Option<String> {
    let release = &spec.release;
    if release.os.is_none() && release.kubernetes.is_none() {
        return Some("spec.release names neither an operating system nor a version of Kubernetes: give one".into());
    }
    if let Some(os) = &release.os
        && os.commit.is_some() == os.image.is_some()
    {
        return Some("spec.release.os: give a commit or an image, one of them".into());
    }
    if let Some(image) = release.os.as_ref().and_then(|os| os.image.as_deref())
        && let Err(wrong) = image::read(image)
    {
        let field = match source {
            Source::Ours => "spec.release.os.image",
            Source::Upstream => "spec.osImageURL",
        };
        return Some(format!("{field} is `{image}`: {wrong}; name it like registry.example/os:24.03"));
    }
    if let Some(version) = &release.kubernetes
        && version_of(version).is_none()
    {
        return Some(format!("spec.release.kubernetes is `{version}`: write it like v1.21.0"));
    }
    if spec.strategy.drain.timeout_seconds == 0 {
        return Some(
            "spec.strategy.drain.timeoutSeconds is 0, so that no pod could ever leave in time: give at least 1".into(),
        );
    }
    (spec.max_unavailable == MaxUnavailable::Count(0))
        .then(|| "spec.maxUnavailable is 0, so that no node could ever begin: give at least 1".into())
}

/// The numbers of a version like `v1.21.0`.
#[must_use]
pub fn version_of(text: &str) -> Option<(u32, u32, u32)> {
    let text = text.strip_prefix('v')?;
    let text = text.split(['-', '+']).next()?;
    let mut numbers = text.split('.').map(|part| part.parse().ok());
    let version = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(version)
}

impl Hours {
    /// Reads a window.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(window: &Window) -> Result<Self, String> {
        let (start, length) = window.minutes()?;
        Ok(Self { days: window.days.iter().map(|day| weekday(*day)).collect(), start, length })
    }

    /// Whether it is open.
    #[must_use]
    pub fn is_open(&self, now: OffsetDateTime) -> bool {
        // What opened yesterday may be open still.
        [0, 1].into_iter().any(|back| {
            let opened = self.opening(now, -back);
            opened.is_some_and(|opened| opened <= now && now < opened + Duration::minutes(self.length))
        })
    }

    /// When it opens next.
    #[must_use]
    pub fn next(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        (0..=7).filter_map(|ahead| self.opening(now, ahead)).find(|opening| *opening > now)
    }

    /// When it opens on a day so many days after today, if it does.
    fn opening(&self, now: OffsetDateTime, days: i64) -> Option<OffsetDateTime> {
        let day = now.to_offset(time::UtcOffset::UTC).replace_time(time::Time::MIDNIGHT) + Duration::days(days);
        let opens = self.days.is_empty() || self.days.contains(&day.weekday());
        opens.then(|| day + Duration::minutes(self.start))
    }
}

fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    fn read(source: Source, spec: Value) -> Wish {
        let object = json!({
            "apiVersion": "nkd.io/v1alpha1", "kind": "Update",
            "metadata": {"name": "a", "uid": "u", "generation": 3, "creationTimestamp": "2026-01-02T03:04:05Z"},
            "spec": spec,
        });
        Wish::read(source, &serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn upstreams_resource_is_the_same_wish() {
        let image = format!("registry.example/nestos@sha256:{}", "a".repeat(64));
        let spec = json!({"osImageURL": image, "kubeVersion": "1.21.0", "evictPodForce": true, "maxUnavailable": 2});
        let wish = read(Source::Upstream, spec);
        assert_eq!(wish.problem, None);
        assert_eq!(wish.spec.release.kubernetes.as_deref(), Some("v1.21.0"));
        assert_eq!(wish.spec.release.os.as_ref().unwrap().image, Some(image));
        assert_eq!(wish.spec.strategy.drain.policy, DrainPolicy::Force);
        assert_eq!(wish.spec.max_unavailable, MaxUnavailable::Count(2));
        assert!(wish.again().contains("by one of nkd.io"), "it has no field for that: {}", wish.again());
        // Empty texts are what upstream's own client writes when only one half is wanted.
        let wish = read(Source::Upstream, json!({"osImageURL": "", "kubeVersion": "v1.21.0", "evictPodForce": false}));
        assert!(wish.problem.is_none() && wish.spec.release.os.is_none());
        assert_eq!(wish.spec.max_unavailable, MaxUnavailable::Count(1));
    }

    #[test]
    fn what_cannot_be_followed_is_said() {
        for (spec, said) in [
            (json!({"release": {"name": "x"}}), "neither"),
            (json!({"release": {"os": {"version": "3"}}}), "one of them"),
            (json!({"release": {"os": {"commit": "a", "image": "b"}}}), "one of them"),
            (json!({"release": {"kubernetes": "1.21"}}), "v1.21.0"),
            (json!({"release": {"kubernetes": "v1.21.0"}, "maxUnavailable": 0}), "at least 1"),
            (json!({"release": {"kubernetes": "v1.21.0"}, "maxUnavailable": "many"}), "10%"),
            (json!({"release": {"kubernetes": "v1.21.0"}, "strategy": {"drain": {"timeoutSeconds": 0}}}), "in time"),
            (json!({"release": {"kubernetes": "v1.21.0"}, "window": {"start": "9:00", "length": "1h"}}), "22:30"),
            (json!({"release": {"kubernetes": "v1.21.0"}, "window": {"start": "09:00", "length": "1"}}), "4h"),
            (
                json!({"release": {"kubernetes": "v1.21.0"}, "window": {"start": "09:00", "length": "1h", "timeZone": "CET"}}),
                "UTC",
            ),
        ] {
            let problem = read(Source::Ours, spec.clone()).problem.unwrap_or_default();
            assert!(problem.contains(said), "{spec}: {problem}");
        }
    }

    #[test]
    fn an_image_by_its_tag_is_unknown_until_its_status_says_its_digest() {
        let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let read = |source: Source, image: &str, found: Value| {
            let spec = match source {
                Source::Ours => json!({"release": {"os": {"image": image}}}),
                Source::Upstream => json!({"osImageURL": image}),
            };
            let object = json!({
                "apiVersion": "nkd.io/v1alpha1", "kind": "Update", "spec": spec, "status": {"image": found},
                "metadata": {"name": "a", "uid": "u", "creationTimestamp": "2026-01-02T03:04:05Z", "resourceVersion": "7"},
            });
            Wish::read(source, &serde_json::from_value(object).unwrap()).unwrap()
        };
        let says = |asked: &str, digest: &str| json!({"asked": asked, "digest": digest, "at": "2026-01-02T03:04:06Z"});
        let image = |wish: &Wish| wish.spec.release.os.clone().unwrap().image.unwrap();
        let full = "registry.example:5000/nestos:24.03";
        for source in [Source::Ours, Source::Upstream] {
            let wish = read(source, full, Value::Null);
            assert_eq!((wish.problem.as_deref(), wish.unknown(), wish.version.as_str()), (None, Some(full), "7"));
            let wish = read(source, full, says(full, &digest("a")));
            assert_eq!((wish.unknown(), wish.found().is_some()), (None, true));
            assert_eq!(image(&wish), format!("registry.example:5000/nestos@{}", digest("a")));
            // What was found for another name, and what is no digest, is nothing.
            for found in [says("registry.example:5000/nestos:24.09", &digest("a")), says(full, "sha256:1")] {
                let wish = read(source, full, found);
                assert_eq!((wish.unknown(), image(&wish).as_str()), (Some(full), full));
            }
            // By its digest it is known, whatever the tag.
            let wish = read(source, &format!("{full}@{}", digest("b")), says(full, &digest("a")));
            assert_eq!((wish.unknown(), wish.found()), (None, None));
            assert_eq!(image(&wish), format!("registry.example:5000/nestos@{}", digest("b")));
        }
        let wish = read(Source::Upstream, "nestos", says("docker.io/library/nestos:latest", &digest("c")));
        assert_eq!(image(&wish), format!("docker.io/library/nestos@{}", digest("c")));
        // People read what was asked for.
        assert_eq!(wish.spec.release.name, "nestos");
    }

    #[test]
    fn what_is_no_image_is_said_before_any_node_refuses_it() {
        let problem = |source, spec: Value| read(source, spec).problem.unwrap_or_default();
        let upstream = problem(Source::Upstream, json!({"osImageURL": "docker://registry.example/os:1"}));
        assert!(upstream.starts_with("spec.osImageURL is `docker://registry.example/os:1`: `docker:`"), "{upstream}");
        let hex = "a".repeat(64);
        for image in ["registry.example/os@sha256:ab".into(), format!("@sha256:{hex}"), "Not an image".into()] {
            let said = problem(Source::Ours, json!({"release": {"os": {"image": image}}}));
            assert!(said.starts_with("spec.release.os.image is "), "{image}: {said}");
        }
    }

    #[test]
    fn a_window_reaches_into_the_next_day_and_into_no_other() {
        let window = |days: Value, start: &str, length: &str| {
            let window = json!({"days": days, "start": start, "length": length});
            Hours::read(&serde_json::from_value(window).unwrap()).unwrap()
        };
        // 2026-01-02 is a Friday.
        let night = window(json!(["Fri"]), "22:00", "4h");
        assert!(!night.is_open(datetime!(2026-01-02 21:59:59 UTC)));
        assert!(night.is_open(datetime!(2026-01-02 22:00 UTC)));
        assert!(night.is_open(datetime!(2026-01-03 01:59:59 UTC)));
        assert!(!night.is_open(datetime!(2026-01-03 02:00 UTC)));
        assert!(!night.is_open(datetime!(2026-01-03 22:30 UTC)), "Saturday");
        assert_eq!(night.next(datetime!(2026-01-02 22:00 UTC)), Some(datetime!(2026-01-09 22:00 UTC)));
        assert!(window(json!([]), "00:00", "24h").is_open(datetime!(2026-01-04 12:00 UTC)));
        assert!(window(json!([]), "00:00", "1h30m").is_open(datetime!(2026-01-04 01:29 UTC)));
        assert!(!window(json!([]), "00:00", "90m").is_open(datetime!(2026-01-04 01:30 UTC)));
    }

    #[test]
    fn a_finished_update_stays_finished() {
        let mut wish = read(Source::Ours, json!({"release": {"kubernetes": "v1.21.0"}}));
        wish.status.phase = Phase::Complete;
        wish.status.observed_generation = 3;
        assert!(!wish.is_finished(&[]), "it was told of no release");
        wish.status.release = Some(wish.spec.release.clone());
        assert!(wish.is_finished(&[]));
        wish.generation = 4;
        assert!(!wish.is_finished(&[]), "its owner has written something else");
        let newer = Wish { uid: "v".into(), created: wish.created + Duration::SECOND, ..wish.clone() };
        assert!(wish.is_finished(&[wish.clone(), newer]), "a newer one has the nodes by now");
        wish.status.phase = Phase::Aborted;
        assert!(!wish.is_finished(&[]), "abort was taken back");
        wish.spec.abort = true;
        assert!(wish.is_finished(&[]));
    }
}
