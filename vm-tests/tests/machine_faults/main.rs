//! What goes wrong while a real machine goes to another release: real ostree, boot loader and restarts on a BIOS and on a UEFI
//! machine. The updater is killed and the power cut at one step after the other; releases do not boot, lack an agent, or fail
//! the node's own check; the disk is full; the repository serves garbage, an old summary, or nothing.
//!
//! Machines are made once, since that takes longest. Releases differ by a file, and keep the version of Kubernetes: what
//! kubeadm does under faults is seen on nodes of namespaces (`update_faults.rs`).

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

mod lab;
mod scene;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nkd_vm_tests::{Error, Harm, within};

use self::lab::Lab;
use self::scene::{BACK_OF, SETTLE, Scene};

type Result<T = ()> = std::result::Result<T, Error>;

/// The files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
#[ignore = "takes an hour: cargo xtask soak"]
fn killed_and_cut_off_at_every_step_machines_come_to_the_new_release() -> Result {
    Lab::new("machine-forward")?.scene()?.tabled(|scene| {
        let second = scene.publish("second", &[])?;
        scene.through(2, &second, [Harm::Kill, Harm::Power])?;
        let third = scene.publish("third", &[])?;
        scene.through(3, &third, [Harm::Power, Harm::Kill])
    })
}

/// What is in the place of a program that does not start.
const STOPPED: &str = "#!/bin/sh\nexit 1\n";

/// A release without an init and one that does not pass the node's own check, on one machine: the first.
fn cut_off_on_the_way_back(scene: &mut Scene, machine: usize) -> Result<String> {
    let first = scene.first.clone();
    let no_init = scene.publish("no-init", &[("usr/lib/systemd/systemd", STOPPED)])?;
    let ill = scene.publish("ill", &[])?;
    scene.back(machine, "no-init", &no_init, &first, "did not come up", &SETTLE)?;
    scene.back(machine, "ill", &ill, &first, "not healthy after", &BACK_OF[machine])?;
    Ok(no_init)
}

#[test]
#[ignore = "takes three quarters of an hour: cargo xtask soak"]
fn releases_that_do_not_stay_leave_uefi_on_the_old_one_though_the_power_is_cut() -> Result {
    Lab::new("machine-back-uefi")?.scene()?.tabled(|scene| {
        let no_init = cut_off_on_the_way_back(scene, 1)?;
        // The same release is refused until somebody asks for another attempt.
        scene.ask("no-init-again", 1, &no_init, 0)?;
        scene.until("no-init-again", "Halted", "did not come up here on", 600)?;
        scene.forget("no-init-again")
    })
}

#[test]
#[ignore = "takes an hour: cargo xtask soak"]
fn releases_that_do_not_stay_leave_bios_on_the_old_one_though_the_power_is_cut() -> Result {
    Lab::new("machine-back-bios")?.scene()?.tabled(|scene| {
        cut_off_on_the_way_back(scene, 0)?;
        // Nobody confirms this one, and nobody gives it up but the deadline, which is soon: for the others it would be too soon.
        let first = scene.first.clone();
        let no_agent = scene.publish("no-agent", &[("usr/bin/nkd-agent", STOPPED)])?;
        let soon = "mkdir -p /etc/systemd/system/nkd-boot-deadline.service.d\n\
            printf '[Service]\\nEnvironment=NKD_BOOT_DEADLINE=60\\n' >/etc/systemd/system/nkd-boot-deadline.service.d/10-soon.conf\n";
        scene.shells[0].run(soon, within(60))?;
        scene.back(0, "no-agent", &no_agent, &first, "did not come up", &[])?;
        scene.shells[0].run("rm -r /etc/systemd/system/nkd-boot-deadline.service.d", within(60)).map(drop)
    })
}

#[test]
#[ignore = "takes an hour: cargo xtask soak"]
fn what_cannot_be_staged_touches_nothing_and_is_staged_when_it_was_put_right() -> Result {
    Lab::new("machine-staging")?.scene()?.run(unstageable)
}

fn unstageable(scene: &mut Scene) -> Result {
    let first = scene.first.clone();
    let repository = scene.lab.nkd.state().join("ostree/lab");
    // The disk is full: what is left of it does not hold a file of the release, which is next to nothing on its way.
    let fourth = scene.publish("fourth", &[("usr/share/nkd-ballast", &"ballast\n".repeat(8 << 20))])?;
    let fill = |scene: &Scene| {
        // What the file system keeps for root counts: ostree is root.
        let fill = "fallocate -l $(($(stat --file-system --format='%f * %S' /var) - 41943040)) /var/filler; sync";
        scene.shells[1].run(fill, within(120)).map(drop)
    };
    let free = |scene: &mut Scene| {
        scene.shells[1].run("rm /var/filler; sync", within(120))?;
        // The kubelet has seen it too.
        let end = Instant::now() + within(600);
        while scene.kubectl(&["get", "node", "uefi-1", "-o", "jsonpath={.spec.taints}"])?.contains("disk-pressure") {
            assert!(Instant::now() < end, "the kubelet does not see that the disk has room again");
            std::thread::sleep(Duration::from_secs(5));
        }
        Ok(())
    };
    scene.staging("full-disk", &fourth, &first, "fetching the release", fill, free)?;

    // The repository serves garbage in the place of the commit and of everything of its deltas, which stays so: when the commit
    // is right again, the release comes by its objects.
    let fifth = scene.publish("fifth", &[])?;
    let object = |commit: &str| {
        let (first, rest) = commit.split_at(2);
        repository.join(format!("objects/{first}/{rest}.commit"))
    };
    let (commit, kept) = (object(&fifth), scene.lab.net.folder().join("kept.commit"));
    let garbage = |_: &Scene| {
        std::fs::copy(&commit, &kept).unwrap();
        std::fs::write(&commit, vec![0x5a; 300]).unwrap();
        for entry in files(&repository.join("deltas")) {
            std::fs::write(entry, vec![0x5a; 300]).unwrap();
        }
        Ok(())
    };
    let mend = |_: &mut Scene| {
        std::fs::copy(&kept, &commit).unwrap();
        Ok(())
    };
    scene.staging("garbage", &fifth, &fourth, "fetching the release", garbage, mend)?;

    // A difference that is garbage, and a summary from before the release: the release comes by its objects.
    let summary = |name: &str| repository.join(name);
    let old = ["summary", "summary.sig"].map(|name| (summary(name), std::fs::read(summary(name)).unwrap()));
    let sixth = scene.publish("sixth", &[])?;
    for (path, bytes) in &old {
        std::fs::write(path, bytes).unwrap();
    }
    scene.ask("stale-summary", 1, &sixth, 0)?;
    scene.until("stale-summary", "Complete", "", 1500)?;
    scene.is_whole(1, &sixth, "healthy")?;
    scene.forget("stale-summary")?;

    // A summary that its signature does not fit: the node goes by the commit's own signature, and needs none.
    let seventh = scene.publish("seventh", &[])?;
    std::fs::write(summary("summary.sig"), &old[1].1).unwrap();
    scene.ask("forged-summary", 1, &seventh, 0)?;
    scene.until("forged-summary", "Complete", "", 1500)?;
    scene.is_whole(1, &seventh, "healthy")?;
    scene.say("done");
    Ok(())
}

#[test]
#[ignore = "takes an hour: cargo xtask soak"]
fn a_release_that_is_nowhere_to_be_had_touches_nothing_and_is_waited_for() -> Result {
    Lab::new("machine-nowhere")?.scene()?.run(nowhere)
}

fn nowhere(scene: &mut Scene) -> Result {
    let first = scene.first.clone();
    let repository = scene.lab.nkd.state().join("ostree/lab");
    // The repository is not there.
    let eighth = scene.publish("eighth", &[])?;
    let aside = scene.lab.nkd.state().join("ostree/aside");
    let take = |_: &Scene| {
        std::fs::rename(&repository, &aside).unwrap();
        Ok(())
    };
    let mend = |_: &mut Scene| {
        std::fs::rename(&aside, &repository).unwrap();
        Ok(())
    };
    scene.staging("nothing", &eighth, &first, "fetching the release", take, mend)?;

    // The whole service is away, for longer than a failed download is tried: the node waits.
    let ninth = scene.publish("ninth", &[])?;
    scene.lab.nkd.process().kill()?;
    scene.ask("away", 1, &ninth, 0)?;
    scene.until("away", "", "does not say where the release is", 300)?;
    std::thread::sleep(Duration::from_secs(240));
    let service = scene.lab.nkd.process();
    service.start_again()?;
    service.expect_log("nkd serves", within(60))?;
    scene.until("away", "Complete", "", 1500)?;
    scene.is_whole(1, &ninth, "healthy")?;
    scene.say("done");
    Ok(())
}
