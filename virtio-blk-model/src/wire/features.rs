//! Feature bits.

use bitflags::bitflags;

bitflags! {
    /// Feature bits that the device knows: VIRTIO 1.3, 5.2.3 and 6.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
    pub struct Features: u64 {
        /// Request barriers. Legacy: 5.2.3.1.
        const BARRIER = 1 << 0;
        /// `size_max` is valid.
        const SIZE_MAX = 1 << 1;
        /// `seg_max` is valid.
        const SEG_MAX = 1 << 2;
        /// The disk is read-only.
        const RO = 1 << 5;
        /// `blk_size` is valid.
        const BLK_SIZE = 1 << 6;
        /// The flush command. Called WCE in legacy drivers.
        const FLUSH = 1 << 9;
        /// `topology` is valid.
        const TOPOLOGY = 1 << 10;
        /// `writeback` is valid, and writable.
        const CONFIG_WCE = 1 << 11;
        /// `num_queues` is valid.
        const MQ = 1 << 12;
        /// The discard command.
        const DISCARD = 1 << 13;
        /// The write-zeroes command.
        const WRITE_ZEROES = 1 << 14;
        /// Experimental: flags in the request header. virtio-spec issue 237; not in VIRTIO 1.3.
        const REQ_FLAGS = 1 << 18;
        /// Experimental: the FUA flag of a write. virtio-spec issue 237; not in VIRTIO 1.3.
        const REQ_FLAGS_OUT_FUA = 1 << 19;
        /// Buffers may be cut in any way. Always so in a modern device.
        const ANY_LAYOUT = 1 << 27;
        /// Indirect descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// Notifications and interrupts by ring index.
        const EVENT_IDX = 1 << 29;
        /// Not a legacy device or driver.
        const VERSION_1 = 1 << 32;
        /// A single queue may be reset.
        const RING_RESET = 1 << 40;
    }
}

/// Its encoding is its bits.
#[cfg(feature = "snapshot")]
impl postcard::experimental::max_size::MaxSize for Features {
    const POSTCARD_MAX_SIZE: usize = u64::POSTCARD_MAX_SIZE;
}

#[cfg(feature = "defmt")]
impl defmt::Format for Features {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "{}", defmt::Debug2Format(self));
    }
}
