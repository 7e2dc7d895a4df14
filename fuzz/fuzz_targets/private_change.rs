#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tickmesh_fuzz::private_change(bytes));
