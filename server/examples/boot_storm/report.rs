//! How long each step took, and what had to be asked for again.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The figures of all machines.
#[derive(Default)]
pub struct Report {
    steps: Mutex<BTreeMap<&'static str, Step>>,
}

#[derive(Default)]
struct Step {
    times: Vec<Duration>,
    retries: u32,
}

impl Report {
    /// A step ended well after so long, having been tried again so often.
    pub fn add(&self, name: &'static str, time: Duration, retries: u32) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let step = steps.entry(name).or_default();
        step.times.push(time);
        step.retries += retries;
    }

    /// One object: times in milliseconds.
    pub fn as_json(&self, machines: usize, failed: usize, seconds: f64) -> serde_json::Value {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = serde_json::Map::new();
        for (name, step) in steps.iter_mut() {
            step.times.sort_unstable();
            let at = |hundredths: usize| {
                let index = (step.times.len() * hundredths / 100).min(step.times.len() - 1);
                step.times[index].as_secs_f64() * 1e3
            };
            let (median, late) = (at(50), at(99));
            told.insert(
                (*name).to_owned(),
                serde_json::json!({ "p50_ms": median, "p99_ms": late, "done": step.times.len(), "retries": step.retries }),
            );
        }
        serde_json::json!({ "machines": machines, "failed": failed, "seconds": seconds, "steps": told })
    }
}
