#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| disk_fuzz::targets::vhost_user::run(data));
