//! Options of a client.

use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures;

/// Options of a client: its demands on a server, and its use of the rings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Queues to set up. For virtio-scsi the control and the event queue count as two of them.
    pub queues: u16,
    /// Descriptors in each ring: a power of two.
    pub size: u16,
    /// Most bytes of data in a request.
    pub transfer_bytes: u32,
    /// Most bytes of data in a descriptor.
    pub segment_bytes: u32,
    /// Features of the device that are taken if the server offers them.
    pub features: u64,
    /// Protocol features that are taken if the server offers them.
    pub protocol: VhostUserProtocolFeatures,
    /// Bytes of the device's configuration that are read at each connection, before the rings start, as QEMU does. A server may take
    /// a client that never reads `writeback` for one that knows of no write cache. 0: none are.
    pub config_bytes: u32,
    /// Whether the rings are kicked once when they start, as QEMU does and the specification demands.
    pub first_kick: bool,
    /// Whether completions are looked for only after a notification, as an interrupt handler does: a notification that never comes
    /// is then found out also where the next request, or a new connection, would have had the ring looked at.
    pub interrupts_only: bool,
    /// How long any one wait may take.
    pub timeout: Duration,
}

/// VIRTIO_F_RING_INDIRECT_DESC.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_RING_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;

/// The feature bits that belong to the device: up to 23, and those of VIRTIO 1.3, 6 that this client speaks.
const KNOWN: u64 = 0x00ff_ffff | INDIRECT_DESC | EVENT_IDX | VERSION_1;

impl Default for Options {
    /// One queue of 128, as QEMU makes them, with every feature that the client knows.
    fn default() -> Self {
        Self {
            queues: 1,
            size: 128,
            transfer_bytes: 128 << 10,
            segment_bytes: 128 << 10,
            features: KNOWN,
            protocol: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::BACKEND_REQ
                | VhostUserProtocolFeatures::INFLIGHT_SHMFD
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                | VhostUserProtocolFeatures::RESET_DEVICE,
            config_bytes: 60,
            first_kick: true,
            interrupts_only: false,
            timeout: Duration::from_secs(20),
        }
    }
}

impl Options {
    /// These options without some features of the device.
    #[must_use]
    pub fn without(mut self, features: u64) -> Self {
        self.features &= !features;
        self
    }

    /// These options without some protocol features.
    #[must_use]
    pub fn without_protocol(mut self, features: VhostUserProtocolFeatures) -> Self {
        self.protocol &= !features;
        self
    }
}
