//! State of a unit beside its tasks.

use bitflags::bitflags;
use blk_core::log;
use blk_core::mutant::{Mutant, active};
use blk_core::order::GuestCache;
use blk_core::storage::Info;

use super::outcome::Outcome;
use super::settings::Settings;
use crate::config::Config;
use crate::sense::{Code, Key, Sense};

/// Something that the guest must hear of before its next command runs, most urgent first: SAM-5, unit attention conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum UnitAttention {
    /// 29h/00h: power on or reset.
    PowerOn,
    /// 29h/02h: the transport was reset.
    TransportReset,
    /// 29h/03h: the unit was reset.
    DeviceReset,
    /// 29h/07h: the I_T nexus was lost.
    NexusLoss,
    /// 2Ah/01h: mode parameters were changed by another than the guest.
    ModeParametersChanged,
    /// 2Ah/09h: the disk was resized.
    CapacityChanged,
    /// 3Fh/0Eh: units came or went.
    ReportedLunsChanged,
}

impl UnitAttention {
    const ALL: [Self; 7] = [
        Self::PowerOn,
        Self::TransportReset,
        Self::DeviceReset,
        Self::NexusLoss,
        Self::ModeParametersChanged,
        Self::CapacityChanged,
        Self::ReportedLunsChanged,
    ];

    const fn bit(self) -> Attentions {
        match self {
            Self::PowerOn => Attentions::POWER_ON,
            Self::TransportReset => Attentions::TRANSPORT_RESET,
            Self::DeviceReset => Attentions::DEVICE_RESET,
            Self::NexusLoss => Attentions::NEXUS_LOSS,
            Self::ModeParametersChanged => Attentions::MODE,
            Self::CapacityChanged => Attentions::CAPACITY,
            Self::ReportedLunsChanged => Attentions::LUNS,
        }
    }

    const fn sense(self) -> Sense {
        let code = match self {
            Self::PowerOn => Code::POWER_ON_OR_RESET,
            Self::TransportReset => Code::BUS_RESET,
            Self::DeviceReset => Code::DEVICE_RESET,
            Self::NexusLoss => Code::NEXUS_LOSS,
            Self::ModeParametersChanged => Code::MODE_PARAMETERS_CHANGED,
            Self::CapacityChanged => Code::CAPACITY_DATA_HAS_CHANGED,
            Self::ReportedLunsChanged => Code::REPORTED_LUNS_CHANGED,
        };
        Sense::new(Key::UnitAttention, code)
    }
}

/// Cause of a reset. It decides which unit attention follows: SAM-5, conditions resulting from SCSI events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ResetCause {
    /// Power on, or a hard reset of the machine.
    Hard,
    /// The transport's own reset, of every target on it.
    Transport,
    /// The task management function LOGICAL UNIT RESET.
    LogicalUnit,
}

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
    struct Attentions: u8 {
        const POWER_ON = 1;
        const TRANSPORT_RESET = 2;
        const DEVICE_RESET = 4;
        const MODE = 8;
        const CAPACITY = 16;
        const LUNS = 32;
        const NEXUS_LOSS = 64;
    }
}

/// Its encoding is its bits.
#[cfg(feature = "snapshot")]
impl postcard::experimental::max_size::MaxSize for Attentions {
    const POSTCARD_MAX_SIZE: usize = u8::POSTCARD_MAX_SIZE;
}

bitflags! {
    /// Settings that a guest has made in a unit. A byte that another process can keep.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
    pub struct Setting: u8 {
        /// WCE of the caching page.
        const WRITE_CACHE = 1;
        /// D_SENSE of the control page.
        const DESCRIPTOR_SENSE = 2;
        /// It was stopped by START STOP UNIT.
        const STOPPED = 4;
    }
}

/// Its encoding is its bits.
#[cfg(feature = "snapshot")]
impl postcard::experimental::max_size::MaxSize for Setting {
    const POSTCARD_MAX_SIZE: usize = u8::POSTCARD_MAX_SIZE;
}

#[cfg(feature = "defmt")]
impl defmt::Format for Setting {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "{}", defmt::Debug2Format(self));
    }
}

/// The state of a unit, without its tasks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Unit {
    pub(super) config: Config,
    /// Mode parameters in force.
    pub(super) settings: Settings,
    /// Whether the storage has a volatile cache: only then can WCE be set.
    pub(super) volatile: bool,
    pub(super) stopped: bool,
    /// An error of an earlier command that had ended with GOOD.
    pub(super) deferred: Option<Sense>,
    attentions: Attentions,
    /// The capacity that the guest may know.
    sectors: u64,
}

impl Unit {
    /// A unit whose storage is not known yet.
    pub(super) const fn off(config: Config) -> Self {
        Self {
            config,
            settings: Settings::defaults(&config, false),
            volatile: false,
            stopped: false,
            deferred: None,
            attentions: Attentions::POWER_ON,
            sectors: 0,
        }
    }

    pub(super) fn power_on(&mut self, info: &Info) {
        self.volatile = info.has_volatile_cache();
        self.settings = self.defaults();
        self.sectors = info.sectors;
        self.raise(UnitAttention::PowerOn);
    }

    pub(super) fn defaults(&self) -> Settings {
        Settings::defaults(&self.config, self.volatile)
    }

    pub(super) fn write_cache(&self) -> bool {
        self.settings.write_cache
    }

    pub(super) fn guest_cache(&self) -> GuestCache {
        if self.settings.write_cache { GuestCache::WriteBack } else { GuestCache::WriteThrough }
    }

    pub(super) fn raise(&mut self, attention: UnitAttention) {
        self.attentions.insert(attention.bit());
    }

    pub(super) fn clear_attentions(&mut self) {
        self.attentions = Attentions::empty();
    }

    pub(super) fn setting(&self) -> Setting {
        let mut setting = Setting::empty();
        setting.set(Setting::WRITE_CACHE, self.settings.write_cache);
        setting.set(Setting::DESCRIPTOR_SENSE, self.settings.descriptor_sense);
        setting.set(Setting::STOPPED, self.stopped);
        setting
    }

    pub(super) fn resume(&mut self, setting: Setting) {
        self.settings = Settings {
            write_cache: self.volatile && setting.contains(Setting::WRITE_CACHE),
            descriptor_sense: setting.contains(Setting::DESCRIPTOR_SENSE),
        };
        self.stopped = setting.contains(Setting::STOPPED);
        self.clear_attentions();
    }

    /// A live resize reaches the guest as a unit attention: SPC-4 annex D, CAPACITY DATA HAS CHANGED.
    pub(super) fn notice_capacity(&mut self, info: &Info) -> bool {
        let resized = self.is_resized(info);
        if resized {
            self.sectors = info.sectors;
            self.raise(UnitAttention::CapacityChanged);
        }
        resized
    }

    /// Whether the storage has another size than the guest may know.
    pub(super) const fn is_resized(&self, info: &Info) -> bool {
        info.sectors != self.sectors
    }

    pub(super) fn check_condition(&self, sense: Sense) -> Outcome {
        match sense.key {
            Key::MediumError | Key::HardwareError => log!(warn, "scsi: CHECK CONDITION: {}", sense),
            _ => log!(debug, "scsi: CHECK CONDITION: {}", sense),
        }
        Outcome::CheckCondition(sense.encode(self.settings.descriptor_sense))
    }

    /// The most urgent thing that the guest has to hear of; it is then no longer pending.
    #[inline]
    pub(super) fn take_pending(&mut self) -> Option<Sense> {
        if self.attentions.is_empty() && self.deferred.is_none() {
            return None;
        }
        self.next_pending()
    }

    #[cold]
    fn next_pending(&mut self) -> Option<Sense> {
        let attention =
            UnitAttention::ALL.into_iter().find(|attention| self.attentions.contains(attention.bit()));
        if let Some(attention) = attention {
            self.attentions.remove(attention.bit());
            return Some(attention.sense());
        }
        self.deferred.take()
    }

    /// Reported LUNs were read: the unit attention that asks for it is served (SPC-4, REPORT LUNS).
    pub(super) fn luns_reported(&mut self) {
        self.attentions.remove(Attentions::LUNS);
    }

    /// The unit after a reset.
    pub(super) fn reset(&mut self, cause: ResetCause) {
        if !active(Mutant::CacheSettingLeaks) {
            self.settings = self.defaults();
        }
        self.stopped = false;
        self.clear_attentions();
        // The mutant's guest meets no unit attention that would stop the command that runs again.
        if !active(Mutant::ResetReexecutes) {
            self.raise(match cause {
                ResetCause::Hard => UnitAttention::PowerOn,
                ResetCause::Transport => UnitAttention::TransportReset,
                ResetCause::LogicalUnit => UnitAttention::DeviceReset,
            });
        }
    }
}
