#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    hawser_fuzz::control::last_known(data);
});
