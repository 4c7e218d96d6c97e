//! TFTP packets: codec, names, negotiation, state machine.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nkd_server::netboot::tftp::fuzz::run_one(data));
