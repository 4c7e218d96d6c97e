//! DHCP packets: decoder and engine, both modes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nkd_server::netboot::dhcp::fuzz::run_one(data));
