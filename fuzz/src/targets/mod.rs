//! The targets.

pub mod ahci_device;
pub mod ahci_wire;
pub mod ata_device;
pub mod ata_wire;
pub mod scsi_device;
pub mod scsi_wire;
pub mod sequencer;
pub mod vfio_user;
pub mod vhost_user;
pub mod virtio_blk_device;
pub mod virtio_blk_wire;
pub mod virtio_scsi_device;
pub mod virtio_scsi_wire;
pub mod virtq;

/// A target: its name, what it does with an input, and inputs to begin with.
pub struct Target {
    /// As in `fuzz_targets/`.
    pub name: &'static str,
    /// Panics if a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs that reach deep.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        /// Every target.
        pub const ALL: &[Target] =
            &[$(Target { name: stringify!($name), run: $name::run, seeds: $name::seeds }),*];
    };
}
targets!(
    ahci_device,
    ahci_wire,
    ata_device,
    ata_wire,
    scsi_device,
    scsi_wire,
    sequencer,
    vfio_user,
    vhost_user,
    virtio_blk_device,
    virtio_blk_wire,
    virtio_scsi_device,
    virtio_scsi_wire,
    virtq
);

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn the_seeds_break_no_promise() {
        for target in ALL {
            for seed in (target.seeds)() {
                (target.run)(&seed);
            }
        }
    }
}
