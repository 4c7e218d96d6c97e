//! The real program, as its users see it: started on loopback, driven over HTTP and TLS, through its own command line,
//! and by a simulated machine. No virtual machines.
#![allow(clippy::disallowed_methods, reason = "tests start programs and open files and sockets")]
#![allow(clippy::unwrap_used, reason = "clippy takes only the test functions themselves for tests")]

mod access;
mod balancer;
mod certificates;
mod channels;
mod cluster;
mod cluster_stand_in;
mod command_line;
mod crash;
mod fleet_lock;
mod full_disk;
mod harness;
mod in_process;
mod input;
mod lifecycle;
mod login;
mod node;
mod openapi;
mod protocol;
mod registry;
mod snapshots;
mod start;
mod trace;
mod upgrade_commands;
mod upgrades;
