#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| disk_fuzz::targets::virtio_scsi_wire::run(data));
