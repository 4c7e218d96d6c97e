//! What the operator and agents write, as the other one reads it.

use serde_json::json;

use super::*;

#[test]
fn a_window_is_read_from_a_line_and_written_as_one() {
    let read = |text: &str| text.parse::<Window>();
    for (text, days, minutes) in [
        ("22:30+4h", vec![], (1350, 240)),
        ("sat,sun 22:30+4h", vec![Day::Sat, Day::Sun], (1350, 240)),
        ("mon,tue,wed,thu,fri 00:00+1h30m", vec![Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri], (0, 90)),
    ] {
        let window = read(text).unwrap();
        assert_eq!((&window.days, window.minutes()), (&days, Ok(minutes)));
        assert_eq!(window.to_string(), text);
    }
    assert_eq!(read(" Sat, 09:00+90m"), Ok(Window { days: vec![Day::Sat], ..read("09:00+90m").unwrap() }));
    for (bad, why) in [
        ("", "22:30+4h"),
        ("22:30", "sat,sun 22:30+4h"),
        ("9:00+1h", "opens at `9:00`"),
        ("24:00+1h", "opens at"),
        ("09:00+1", "open for `1`"),
        ("09:00+25h", "at most 24h"),
        ("09:00+0m", "open for"),
        ("caturday 09:00+1h", "`caturday` is no day"),
    ] {
        let told = read(bad).unwrap_err();
        assert!(told.contains(why), "{bad}: {told}");
    }
    let elsewhere = Window { time_zone: "CET".into(), ..read("09:00+1h").unwrap() };
    assert!(elsewhere.minutes().unwrap_err().contains("only UTC"));
}

#[test]
fn what_operator_and_agent_write_is_what_was_agreed() {
    let desired = Desired {
        update: "rack7-2".into(),
        uid: "u".into(),
        attempt: 1,
        retry: Some(0),
        os: None,
        kubernetes: Some("v1.21.0".into()),
        first: true,
        go: false,
        ignore_preflight_errors: Vec::new(),
    };
    let text = json!({"update": "rack7-2", "uid": "u", "attempt": 1, "retry": 0, "os": null, "kubernetes": "v1.21.0", "first": true, "go": false});
    assert_eq!(serde_json::to_value(&desired).unwrap(), text);
    assert_eq!(serde_json::from_value::<Desired>(text.clone()).unwrap(), desired);
    // An operator of before.
    let mut older = text;
    older.as_object_mut().unwrap().remove("retry");
    assert_eq!(serde_json::from_value::<Desired>(older).unwrap().retry, None);
    for (word, state, ended) in [
        ("staging", ReportedState::Staging, false),
        ("staged", ReportedState::Staged, false),
        ("upgrading", ReportedState::Upgrading, false),
        ("rebooting", ReportedState::Rebooting, false),
        ("healthy", ReportedState::Healthy, true),
        ("failed", ReportedState::Failed, true),
        ("rolled-back", ReportedState::RolledBack, true),
    ] {
        let text = json!({"uid": "u", "attempt": 1, "state": word, "detail": "", "os": "abc", "kubernetes": "v1.20.2"});
        let reported: Reported = serde_json::from_value(text.clone()).unwrap();
        assert_eq!((reported.state, reported.state.is_end(), reported.state.as_str()), (state, ended, word));
        assert_eq!(serde_json::to_value(&reported).unwrap(), text);
    }
}

#[test]
fn a_number_or_a_share_of_nodes() {
    let read = |value| serde_json::from_value::<MaxUnavailable>(value);
    assert_eq!(read(json!(3)).unwrap(), MaxUnavailable::Count(3));
    assert_eq!(read(json!("3")).unwrap(), MaxUnavailable::Count(3));
    assert_eq!(read(json!("25%")).unwrap(), MaxUnavailable::Percent(25));
    for bad in [json!("x"), json!("0%"), json!("101%"), json!(-1), json!("%")] {
        assert!(read(bad.clone()).is_err(), "{bad}");
    }
    assert_eq!((MaxUnavailable::Percent(25).of(10), MaxUnavailable::Percent(1).of(10)), (2, 1));
    assert_eq!(serde_json::to_value(MaxUnavailable::Percent(25)).unwrap(), json!("25%"));
}

#[test]
fn what_is_left_out_has_its_default() {
    let spec: UpdateSpec = serde_json::from_value(json!({"release": {"name": "2", "kubernetes": "v1.21.0"}})).unwrap();
    assert_eq!(spec.max_unavailable, MaxUnavailable::Count(1));
    assert_eq!((spec.strategy.halt_after_failures, spec.strategy.halt_after_rollbacks), (2, 1));
    assert_eq!(spec.strategy.silent_seconds, 900);
    assert_eq!(spec.strategy.drain.policy, DrainPolicy::Evict);
    assert!(spec.release.os.is_none() && !spec.paused && !spec.abort);
    let upstream = json!({"osImageURL": "registry.example/os:1", "kubeVersion": "v1.21.0", "evictPodForce": true, "maxUnavailable": 2});
    let read: UpstreamSpec = serde_json::from_value(upstream.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), upstream);
}
