//! IDENTIFY DEVICE data, made from the opcode table, the storage and the settings.

use blk_core::storage::Info;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::transmute_mut;

use super::config::DriveConfig;
use super::limits::{LBA28_BLOCKS_MAX, LBA48_BLOCKS_MAX, dsm_blocks_max, multiple_max};
use super::log::{Page, sum_up};
use super::settings::{Settings, TransferMode};
use crate::command::{Advertised, Geometry, Interface, Protocol, Row, TABLE};
use crate::wire::IdentifyData;

/// What IDENTIFY tells.
pub(super) struct Identity<'a> {
    pub(super) config: &'a DriveConfig,
    pub(super) settings: &'a Settings,
    pub(super) smart_enabled: bool,
    pub(super) interface: Interface,
    /// Queued commands at once.
    pub(super) depth: usize,
    pub(super) info: &'a Info,
}

/// Word 76: commands are queued.
const QUEUES: u16 = 1 << 8;

/// A word whose bits 15:14 are 01b, which is what makes it valid.
const VALID: u16 = 0x4000;

impl Identity<'_> {
    /// Fills in a page of zeroes (words as in [`IdentifyData`]).
    pub(super) fn fill(&self, page: &mut Page) {
        self.rows(transmute_mut!(page));
        let data: &mut IdentifyData = transmute_mut!(page);
        data.general = U16::new(0x0040);
        self.strings(data);
        self.capacity(data);
        self.geometry(data);
        self.transfers(data);
        self.command_sets(data);
        // ATA-4 to ACS-2; Linux asks for 7 or more before it believes in TRIM (`ata_id_has_trim`).
        data.major_version = U16::new(0x03f0);
        data.rotation_rate = U16::new(u16::from(!self.info.rotational));
        data.alignment = U16::new(VALID);

        let [.., signature, _] = page;
        *signature = 0xa5;
        sum_up(page);
    }

    fn strings(&self, data: &mut IdentifyData) {
        put_text(&mut data.serial, &self.config.serial);
        put_text(&mut data.firmware, &self.config.firmware);
        put_text(&mut data.model, &self.config.model);
        if let Some(name) = self.config.world_wide_name {
            let [a, b, c, d, e, f, g, h] = name.to_be_bytes();
            data.world_wide_name = [[a, b], [c, d], [e, f], [g, h]].map(|w| U16::new(u16::from_be_bytes(w)));
        }
    }

    fn blocks(&self) -> u64 {
        self.info.sectors.checked_div(self.info.sectors_per_block()).unwrap_or(0)
    }

    fn capacity(&self, data: &mut IdentifyData) {
        let blocks = self.blocks();
        data.lba28_sectors = U32::new(u32::try_from(blocks.min(LBA28_BLOCKS_MAX)).unwrap_or(0));
        data.lba48_sectors = U64::new(blocks.min(LBA48_BLOCKS_MAX));
        let mut size = VALID;
        if self.info.logical_block_bytes > 512 {
            size |= 1 << 12;
            data.logical_sector_words = U32::new(self.info.logical_block_bytes >> 1);
        }
        let ratio = self.info.physical_block_bytes.checked_div(self.info.logical_block_bytes).unwrap_or(1);
        let log2 = ratio.checked_ilog2().unwrap_or(0).min(15);
        if log2 > 0 {
            size |= 1 << 13 | u16::try_from(log2).unwrap_or(0);
        }
        data.sector_size = U16::new(size);
    }

    fn geometry(&self, data: &mut IdentifyData) {
        // The default translation is shown up to 16,383 cylinders (ATA/ATAPI-5, IDENTIFY DEVICE, word 1).
        let blocks = self.blocks();
        let cylinders = Geometry::DEFAULT.cylinders(blocks).min(16_383);
        data.cylinders = U16::new(cylinders);
        data.heads = U16::new(u16::from(Geometry::DEFAULT.heads()));
        data.sectors_per_track = U16::new(u16::from(Geometry::DEFAULT.sectors_per_track()));
        let current = self.settings.geometry;
        let cylinders = if current == Geometry::DEFAULT { cylinders } else { current.cylinders(blocks) };
        data.current_cylinders = U16::new(cylinders);
        data.current_heads = U16::new(u16::from(current.heads()));
        data.current_sectors_per_track = U16::new(u16::from(current.sectors_per_track()));
        let reach = u32::from(cylinders)
            .saturating_mul(u32::from(current.heads()))
            .saturating_mul(u32::from(current.sectors_per_track()));
        data.current_sectors = U32::new(reach);
        data.validity = U16::new(0b111);
    }

    fn transfers(&self, data: &mut IdentifyData) {
        data.multiple_max = U16::new(0x8000 | u16::from(multiple_max(self.info)));
        if self.settings.multiple != 0 {
            data.multiple = U16::new(0x0100 | u16::from(self.settings.multiple));
        }
        // LBA, IORDY and that it can be disabled; DMA comes from the table.
        data.capabilities |= U16::new(0x0e00);
        data.capabilities_2 = U16::new(VALID);
        data.pio_modes = U16::new(0b11);
        data.cycle_times = [U16::new(120); 4];
        if self.interface == Interface::Serial {
            self.serial(data);
        } else {
            data.hardware_reset = U16::new(VALID | 0x2001);
        }
        if self.interface.has_dma() {
            let modes = |max: u8, selected: Option<u8>| {
                let below = 1_u16.checked_shl(u32::from(max).saturating_add(1)).unwrap_or(0).wrapping_sub(1);
                below | selected.and_then(|mode| 0x0100_u16.checked_shl(u32::from(mode))).unwrap_or(0)
            };
            let (multiword, ultra) = match self.settings.transfer {
                TransferMode::Pio => (None, None),
                TransferMode::Multiword(mode) => (Some(mode), None),
                TransferMode::Ultra(mode) => (None, Some(mode)),
            };
            data.multiword_dma = U16::new(modes(TransferMode::MULTIWORD_MAX, multiword));
            data.ultra_dma = U16::new(modes(TransferMode::ULTRA_MAX, ultra));
        }
    }

    /// What only a serial device has (ACS-3, words 76 to 79 and 222). Word 93 stays zero, by which hosts tell that it is one.
    fn serial(&self, data: &mut IdentifyData) {
        // All three signalling speeds. Queuing comes from the table; the rest of these words says no: no NCQ NON-DATA, no SEND
        // FPDMA QUEUED, no power management by the device, no device sleep.
        data.sata_capabilities |= U16::new(0b1110);
        data.sata_features = U16::new(1 << 6);
        data.sata_features_enabled = U16::new(u16::from(self.settings.preserve_settings) << 6);
        // Serial, up to revision 3.0.
        data.transport_version = U16::new(0x103e);
    }

    /// The bits that tell of rows: each is set where every row that has it is there.
    fn rows(&self, words: &mut [U16; 256]) {
        for offered in [true, false] {
            for row in TABLE.iter().filter(|row| self.offers(row) == offered) {
                for &(Advertised::Both(word, bit) | Advertised::Bit(word, bit)) in
                    row.advertised.iter().flatten()
                {
                    if let Some(word) = words.get_mut(usize::from(word)) {
                        *word = U16::new(with(word.get(), bit, offered));
                    }
                }
            }
        }
    }

    fn offers(&self, row: &Row) -> bool {
        row.available(self.info, self.interface) && (self.depth > 1 || row.protocol != Protocol::Queued)
    }

    /// The rest of the words that tell what there is and what is enabled, once the bits of the rows are set.
    fn command_sets(&self, data: &mut IdentifyData) {
        if data.sata_capabilities.get() & QUEUES != 0 {
            data.queue_depth = U16::new(u16::try_from(self.depth.saturating_sub(1)).unwrap_or(0));
        }
        if data.data_set_management.get() != 0 {
            data.dsm_blocks_max = U16::new(dsm_blocks_max(self.info));
        }
        let [s0, s1, s2, ..] = data.command_sets.map(U16::get);
        let s0 = with(with(s0, 5, self.info.has_volatile_cache()), 6, true);
        let s2 = with(s2, 8, self.config.world_wide_name.is_some());

        let mut enabled = s0;
        for (bit, on) in
            [(0, self.smart_enabled), (5, self.settings.write_cache), (6, self.settings.look_ahead)]
        {
            enabled = with(enabled, bit, on) & s0;
        }
        // Word 86 has no validity bits: its bit 15 says that words 119-120 are valid, and bit 14 is reserved.
        data.command_sets = [s0, s1 | VALID, s2 | VALID, enabled, s1, s2 | VALID].map(U16::new);
    }
}

/// A word with one of its bits, 0 to 15, as `on` says.
fn with(word: u16, bit: u8, on: bool) -> u16 {
    let mask = 1_u16.checked_shl(u32::from(bit)).unwrap_or(0);
    if on { word | mask } else { word & !mask }
}

/// Puts down a string with the two characters of each word swapped.
fn put_text(to: &mut [u8], text: &[u8]) {
    for (to, from) in to.chunks_exact_mut(2).zip(text.chunks_exact(2)) {
        if let ([first, second], [a, b]) = (to, from) {
            (*first, *second) = (*b, *a);
        }
    }
}
