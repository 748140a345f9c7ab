#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| disk_fuzz::targets::virtio_blk_device::run(data));
