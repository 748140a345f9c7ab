//! What a guest sees of logical units: host adapters.

pub mod virtio_scsi;
