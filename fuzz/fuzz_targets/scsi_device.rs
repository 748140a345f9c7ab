#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| disk_fuzz::target::scsi_device::run(data));
