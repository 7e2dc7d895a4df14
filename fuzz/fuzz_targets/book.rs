#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tickmesh_fuzz::book(bytes));
