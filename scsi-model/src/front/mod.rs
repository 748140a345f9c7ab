//! Host adapters in front of logical units.

pub mod virtio_scsi;
