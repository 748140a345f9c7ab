#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| disk_fuzz::target::virtio_blk_wire::run(data));
