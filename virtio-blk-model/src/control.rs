//! Configuration, negotiation, configuration space and the device status: what a device is, apart from its queues.

use blk_core::bus::Width;
use blk_core::mutant::{Mutant, active};
use blk_core::order::GuestCache;
use blk_core::storage::Info;
use blk_core::virtq::RingFeatures;
use zerocopy::IntoBytes as _;

use crate::chain::SEGMENTS_MAX;
use crate::command::{self, RANGE_SECTORS_MAX, RANGES_MAX};
use crate::queue::DeviceView;
use crate::wire::{ConfigSpace, DeviceStatus, Features};

/// Interface of the device, one of the two of VIRTIO 1.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Interface {
    /// With VERSION_1.
    #[default]
    Modern,
    /// The legacy interface, without VERSION_1, for a little-endian guest.
    Legacy {
        /// Offer BARRIER, which only the legacy interface has (5.2.3.1). With one queue only: it orders one queue.
        barrier: bool,
    },
}

/// Configuration that an embedder chooses. The rest follows from the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Config {
    /// The serial that GET_ID returns, padded with zeroes.
    pub serial: [u8; 20],
    /// Request queues, at most as many as the device type has; one at least.
    pub queues: u16,
    /// Most entries of a queue: a power of two, 1024 at most.
    pub queue_size_max: u16,
    /// Refuse changes, although the storage would take them.
    pub read_only: bool,
    /// The interface.
    pub interface: Interface,
    /// Offer the experimental FUA write, REQ_FLAGS and REQ_FLAGS_OUT_FUA (virtio-spec issue 237): bit 0 of the header's
    /// second word. Its text is not final, so it is off unless asked for.
    pub experimental_fua: bool,
}

impl Config {
    /// One queue, without a serial.
    pub const DEFAULT: Self = Self {
        serial: [0; 20],
        queues: 1,
        queue_size_max: 256,
        read_only: false,
        interface: Interface::Modern,
        experimental_fua: false,
    };
}

impl Default for Config {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A change that waits for every queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(crate) enum Change {
    /// None.
    None,
    /// The cache is being turned off: the queues take nothing and finish what they have.
    Draining,
    /// The cache is being turned off: the flush is in flight on queue 0.
    Flushing,
    /// A reset waits for what the storage has.
    Resetting,
}

/// The part of a device that its queues only see as a [`DeviceView`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct Control {
    pub(crate) config: Config,
    status: DeviceStatus,
    /// As the driver wrote them.
    driver_features: u64,
    /// As they were agreed.
    features: Features,
    /// `writeback` of configuration space, on a storage that has a volatile cache. The view follows it.
    cache_on: bool,
    volatile: bool,
    pub(crate) change: Change,
    /// Number of changes of the view and of configuration space.
    epoch: u32,
    /// The capacity as it was last seen; 0 before that.
    sectors: u64,
}

impl Control {
    /// A device after power-on, of the type that has `queues` queues: for a transport without a device status, whose embedder
    /// makes the [`DeviceView`] itself.
    #[must_use]
    pub const fn new(config: Config, queues: usize) -> Self {
        let queues_max = if queues < u16::MAX as usize { queues as u16 } else { u16::MAX };
        let queues = if config.queues < queues_max { config.queues } else { queues_max };
        let queues = if queues == 0 { 1 } else { queues };
        Self {
            config: Config { queues, ..config },
            status: DeviceStatus::empty(),
            driver_features: 0,
            features: Features::empty(),
            cache_on: true,
            volatile: true,
            change: Change::None,
            epoch: 0,
            sectors: 0,
        }
    }

    /// The configuration, as far as it could be followed.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The device status. It reads 0 only when a reset is over.
    #[must_use]
    pub const fn status(&self) -> DeviceStatus {
        self.status
    }

    /// The agreed features.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    /// Counts the changes of configuration space.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.epoch
    }

    /// Whether the capacity has changed since the driver began, so that it is to be told (5.2.5.1: by a configuration change).
    pub(crate) fn is_resized(&mut self, info: &Info) -> bool {
        let before = core::mem::replace(&mut self.sectors, info.sectors);
        if before == info.sectors || before == 0 {
            return false;
        }
        self.epoch = self.epoch.wrapping_add(1);
        self.status.contains(DeviceStatus::DRIVER_OK)
    }

    /// The view that the queues need.
    #[must_use]
    #[inline]
    pub fn view(&self) -> DeviceView {
        DeviceView {
            features: self.features,
            cache: if self.cache_on && self.volatile {
                GuestCache::WriteBack
            } else {
                GuestCache::WriteThrough
            },
            read_only: self.config.read_only,
            open: self.change == Change::None && self.is_live(),
            epoch: self.epoch,
        }
    }

    /// The features that are offered on a storage described by `info`.
    #[must_use]
    pub fn offered(&self, info: &Info) -> Features {
        let Config { queues, interface, experimental_fua, .. } = self.config;
        let read_only = self.config.read_only || info.read_only;
        let mut features = command::features(info, read_only)
            | Features::SIZE_MAX
            | Features::SEG_MAX
            | Features::BLK_SIZE
            | Features::TOPOLOGY
            | Features::CONFIG_WCE
            | Features::ANY_LAYOUT
            | Features::INDIRECT_DESC
            | Features::EVENT_IDX;
        features.set(Features::RO, read_only);
        features.set(Features::MQ, queues > 1);
        features.set(Features::REQ_FLAGS | Features::REQ_FLAGS_OUT_FUA, experimental_fua && !read_only);
        match interface {
            Interface::Modern => features |= Features::VERSION_1 | Features::RING_RESET,
            Interface::Legacy { barrier } => features.set(Features::BARRIER, barrier && queues == 1),
        }
        features
    }

    /// The driver writes its features, as a whole. Once they are agreed they are fixed.
    ///
    /// A modern device agrees at FEATURES_OK. A legacy one has no such moment, and drivers use queues before DRIVER_OK, so
    /// it agrees whenever they are written.
    pub fn write_features(&mut self, features: u64, info: &Info) {
        match self.config.interface {
            Interface::Modern if self.status.contains(DeviceStatus::FEATURES_OK) => {}
            Interface::Modern => self.driver_features = features,
            Interface::Legacy { .. } if self.status.contains(DeviceStatus::DRIVER_OK) => {}
            Interface::Legacy { .. } => {
                self.driver_features = features;
                self.negotiate(info);
            }
        }
    }

    /// The features as the driver wrote them.
    #[must_use]
    pub const fn driver_features(&self) -> u64 {
        self.driver_features
    }

    /// Agrees on the features that the driver wrote, and sets the cache accordingly.
    fn negotiate(&mut self, info: &Info) {
        self.features = Features::from_bits_truncate(self.driver_features) & self.offered(info);
        self.volatile = info.has_volatile_cache();
        // 5.2.5.2, 5.2.6.2: write-back is for drivers that can flush. Without FLUSH, `writeback` starts at 0, and without
        // CONFIG_WCE either the device is write-through.
        if !active(Mutant::CacheSettingLeaks) {
            self.cache_on = self.features.contains(Features::FLUSH);
        }
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// Byte `width` at `offset` of the configuration space; what lies beyond it reads as zeroes.
    #[must_use]
    pub fn read_config(&self, offset: u64, width: Width, info: &Info) -> u64 {
        blk_core::virtio::read_bytes(self.config_space(info).as_bytes(), offset, width)
    }

    /// The configuration space.
    #[must_use]
    pub fn config_space(&self, info: &Info) -> ConfigSpace {
        let blocks = |bytes: u32| bytes.checked_div(info.logical_block_bytes).unwrap_or(0);
        let physical_blocks = blocks(info.physical_block_bytes).max(1);
        let (size_max, seg_max) = limits(info, self.config.queue_size_max);
        ConfigSpace {
            capacity: info.sectors.into(),
            size_max: size_max.into(),
            seg_max: seg_max.into(),
            geometry: [0; 4],
            blk_size: info.logical_block_bytes.into(),
            physical_block_exp: u8::try_from(physical_blocks.ilog2()).unwrap_or(0),
            alignment_offset: 0,
            min_io_size: u16::try_from(physical_blocks).unwrap_or(u16::MAX).into(),
            opt_io_size: blocks(info.optimal_io_bytes).into(),
            writeback: u8::from(self.cache_on && info.has_volatile_cache()),
            unused0: 0,
            num_queues: self.config.queues.into(),
            max_discard_sectors: RANGE_SECTORS_MAX.into(),
            max_discard_seg: (RANGES_MAX as u32).into(),
            discard_sector_alignment: (info.physical_block_bytes >> 9).into(),
            max_write_zeroes_sectors: RANGE_SECTORS_MAX.into(),
            max_write_zeroes_seg: (RANGES_MAX as u32).into(),
            write_zeroes_may_unmap: u8::from(info.discard),
            unused1: [0; 3],
        }
    }

    /// Notes that a queue is broken, and returns whether the driver is to be told (2.1.2).
    #[cold]
    pub(crate) fn needs_reset(&mut self) -> bool {
        let told = self.status.contains(DeviceStatus::NEEDS_RESET);
        self.status |= DeviceStatus::NEEDS_RESET;
        !told && self.status.contains(DeviceStatus::DRIVER_OK)
    }

    /// Whether the driver may use its queues.
    fn is_live(&self) -> bool {
        self.status.contains(match self.config.interface {
            Interface::Modern => DeviceStatus::DRIVER_OK,
            // 3.1.1: drivers such as Linux before 3.19 use the queues first and set DRIVER_OK later.
            Interface::Legacy { .. } => DeviceStatus::DRIVER,
        })
    }

    pub(crate) const fn ring_features(&self) -> RingFeatures {
        RingFeatures {
            indirect: self.features.contains(Features::INDIRECT_DESC),
            event_idx: self.features.contains(Features::EVENT_IDX),
        }
    }

    pub(crate) fn add_status(&mut self, status: DeviceStatus, info: Option<&Info>) {
        if self.change == Change::Resetting {
            return;
        }
        let Some(info) = info else { return };
        let mut new = status.difference(DeviceStatus::NEEDS_RESET) | self.status;
        if self.config.interface == Interface::Modern {
            if new.contains(DeviceStatus::FEATURES_OK) && !self.status.contains(DeviceStatus::FEATURES_OK) {
                // 2.2.2, 6.2: refused by leaving the bit clear, for bits that were not offered and for a driver that
                // does not know VERSION_1.
                let unknown = self.driver_features & !self.offered(info).bits() != 0;
                if unknown || self.driver_features & Features::VERSION_1.bits() == 0 {
                    new.remove(DeviceStatus::FEATURES_OK);
                } else {
                    self.negotiate(info);
                }
            }
            if !new.contains(DeviceStatus::FEATURES_OK) {
                new.remove(DeviceStatus::DRIVER_OK);
            }
        } else if !self.is_live() {
            self.negotiate(info);
        }
        self.status = new;
    }

    pub(crate) fn write_writeback(&mut self, on: bool, info: Option<&Info>) {
        let idle = self.change == Change::None && self.features.contains(Features::CONFIG_WCE);
        // On a storage without a volatile cache there is none to be turned on.
        if !idle || on == self.cache_on || !info.is_some_and(Info::has_volatile_cache) {
            return;
        }
        self.epoch = self.epoch.wrapping_add(1);
        if on {
            self.cache_on = true;
        } else {
            self.change = Change::Draining;
        }
    }

    pub(crate) fn end_cache_off(&mut self, flushed: bool) {
        self.change = Change::None;
        self.cache_on = !flushed;
        self.epoch = self.epoch.wrapping_add(1);
    }

    pub(crate) fn end_reset(&mut self) {
        self.change = Change::None;
        self.status = DeviceStatus::empty();
        self.driver_features = 0;
        self.features = Features::empty();
        self.cache_on = true;
        self.epoch = self.epoch.wrapping_add(1);
    }
}

/// `size_max` and `seg_max`: chosen so that a driver that keeps to both asks for no more than the storage moves at once.
fn limits(info: &Info, queue_size_max: u16) -> (u32, u32) {
    const PAGE: u32 = 4096;
    // Two descriptors are for the header and the status byte.
    let descriptors = queue_size_max.min(SEGMENTS_MAX as u16).saturating_sub(2);
    let segments = u32::from(descriptors.min(info.segments_max)).min(info.transfer_max_bytes / PAGE).max(1);
    let bytes = info.transfer_max_bytes.checked_div(segments).unwrap_or(PAGE);
    (if bytes >= PAGE { bytes & !(PAGE - 1) } else { bytes }, segments)
}
