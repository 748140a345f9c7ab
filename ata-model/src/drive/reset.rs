//! Resets: nothing more is submitted, what was is awaited, and then the drive is as the kind of reset has it.

use blk_core::log;
use blk_core::mutant::{Mutant, active};
use blk_core::storage::Storage;

use super::job::Job;
use super::settings::Settings;
use super::state::Drive;
use crate::command::{Interface, Power};

/// Kind of reset. A later kind includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Reset {
    /// The host gives up the commands in execution, and nothing else.
    Stop,
    /// SRST: settings stay unless the guest asked otherwise (SET FEATURES CCh).
    Software,
    /// COMRESET: settings stay unless the guest asked otherwise (SET FEATURES 90h 06h).
    Comreset,
    /// Power-on, and RESET- on a parallel cable: every setting has its default.
    PowerOn,
}

impl<const N: usize> Drive<N> {
    /// Begins a reset: nothing more is submitted, and what was is awaited by [`Self::drain`].
    pub fn begin_reset(&mut self) {
        log!(info, "ata: reset, {} operations in flight", self.sequencer.in_use());
        self.sequencer.reset();
    }

    /// Whether a reset that was begun has nothing to wait for any more.
    pub fn drain<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, memory: &M, storage: &mut S) -> bool {
        while self.sequencer.poll(memory, storage).is_some() {}
        self.sequencer.finish_reset(storage)
    }

    /// Ends a reset if nothing is with the storage any more; returns whether it has.
    pub fn finish_reset<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        reset: Reset,
        memory: &M,
        storage: &mut S,
    ) -> bool {
        if !self.drain(memory, storage) {
            return false;
        }
        log!(info, "ata: reset is over: {}", reset);
        self.reexecute(memory, storage);
        self.job = Job::Idle;
        self.queue.drop_all(reset == Reset::Stop);
        let kept = match reset {
            Reset::Stop => true,
            Reset::Software => !self.settings.revert_on_reset,
            Reset::Comreset => self.interface == Interface::Serial && self.settings.preserve_settings,
            Reset::PowerOn => false,
        };
        if !kept {
            let leaked = active(Mutant::CacheSettingLeaks).then_some(self.settings.write_cache);
            self.settings = Settings::power_on(leaked.unwrap_or(self.config.write_cache));
        }
        self.power = match self.power {
            _ if reset == Reset::PowerOn => Power::Active,
            Power::Sleep if reset != Reset::Stop => Power::Standby,
            power => power,
        };
        true
    }
}
