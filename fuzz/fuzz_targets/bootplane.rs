//! HTTP request heads: parser and responder.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nkd_server::netboot::bootplane::fuzz::run_one(data));
