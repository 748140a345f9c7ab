//! Commands that are answered from what the unit knows: identity, capacity, limits, pending sense.

use blk_core::storage::{Info, Storage};
use zerocopy::byteorder::big_endian::U16;
use zerocopy::{FromZeros, IntoBytes};

use super::io::{Io, Refusal};
use super::limits::{
    capacity_blocks, compare_max_blocks, transfer_max_blocks, unmap_descriptors_max, write_same_max_blocks,
};
use super::opcodes;
use super::reply::{Reply, report_luns};
use super::unit::Unit;
use crate::command::Command;
use crate::sense::{Code, Key, Sense};
use crate::transport::Transport;
use crate::wire::data::{
    BlockLimits, Capacity10, Capacity16, Characteristics, Designator, ExtendedInquiry, Inquiry, LbaStatus,
    Provisioning, VpdHead,
};

/// Vital product data pages, in ascending order (SPC-4, Supported VPD Pages).
const VPD_PAGES: [u8; 7] = [0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2];

/// SAM-5, SPC-4 and SBC-3, no version claimed: SPC-4, standard INQUIRY data.
const VERSIONS: [u16; 3] = [0x00a0, 0x0460, 0x04c0];

impl Unit {
    /// Puts the reply to a command that has one into `reply`, and returns its allocation length.
    pub(super) fn answer<M, S, T>(
        &mut self,
        command: Command,
        io: &mut Io<'_, M, S, T>,
        reply: &mut Reply,
    ) -> Result<u32, Refusal>
    where
        M: ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let info = io.storage.info();
        Ok(match command {
            Command::Inquiry { page: None, allocation } => {
                self.inquiry(reply);
                allocation
            }
            Command::Inquiry { page: Some(page), allocation } => {
                self.vital_product_data(page, info, reply)?;
                allocation
            }
            Command::RequestSense { descriptors, allocation } => {
                self.request_sense(descriptors, reply);
                allocation
            }
            Command::ReportLuns { select, allocation } => {
                report_luns(select, (0..).map_while(|index| io.guest.transport.lun(index)), reply)?;
                self.luns_reported();
                allocation
            }
            Command::ReportOpcodes { options, timeouts, opcode, service_action, allocation } => {
                opcodes::report(options, timeouts, opcode, service_action, info, reply)?;
                allocation
            }
            Command::GetLbaStatus { lba, allocation } => {
                lba_status(lba, info, reply)?;
                allocation
            }
            Command::ReadCapacity10 => {
                read_capacity10(info, reply)?;
                u32::MAX
            }
            Command::ReadCapacity16 { allocation } => {
                read_capacity16(info, reply)?;
                allocation
            }
            Command::ModeSense(sense) => {
                self.mode_sense(&sense, info, reply)?;
                sense.allocation.into()
            }
            _ => return Err(Sense::INVALID_OPCODE.into()),
        })
    }

    /// Pending sense data as the reply: SPC-4, REQUEST SENSE. It is then no longer pending.
    fn request_sense(&mut self, descriptors: bool, reply: &mut Reply) {
        let sense = self.take_pending().unwrap_or(if self.stopped { Sense::STOPPED } else { Sense::NONE });
        reply.push(&sense.encode(descriptors));
    }

    fn inquiry(&self, reply: &mut Reply) {
        let mut versions = [U16::new(0); 8];
        for (place, version) in versions.iter_mut().zip(VERSIONS) {
            *place = version.into();
        }
        let inquiry = Inquiry {
            version: 6,               // SPC-4
            format: 0x12,             // HISUP; NORMACA=0: there is no ACA condition
            additional_bytes: 96 - 5, // SPC-4, standard INQUIRY data: not changed by a short allocation length
            flags7: 0x02,             // CMDQUE
            vendor: self.config.vendor,
            product: self.config.product,
            revision: self.config.revision,
            versions,
            ..Inquiry::new_zeroed()
        };
        reply.push(inquiry.as_bytes());
    }

    fn vital_product_data(&self, page: u8, info: &Info, reply: &mut Reply) -> Result<(), Sense> {
        // The length is known when the page is there.
        reply.push(VpdHead { peripheral: 0, page, bytes: 0.into() }.as_bytes());
        match page {
            0x00 => reply.push(&VPD_PAGES),
            0x80 => reply.push(self.config.serial_text()),
            0x83 => self.identification(reply),
            0x86 => reply.push(
                ExtendedInquiry {
                    attributes: 0x07, // HEADSUP, ORDSUP, SIMPSUP
                    cache: u8::from(self.volatile),
                    ..ExtendedInquiry::new_zeroed()
                }
                .as_bytes(),
            ),
            0xb0 => reply.push(block_limits(info).as_bytes()),
            0xb1 => {
                let rotation = u16::from(!info.rotational).into();
                reply.push(Characteristics { rotation, ..Characteristics::new_zeroed() }.as_bytes());
            }
            0xb2 => reply.push(provisioning(info).as_bytes()),
            _ => return Err(Sense::cdb_field(2, None)),
        }
        let bytes = reply.bytes().len().saturating_sub(size_of::<VpdHead>());
        let bytes = u16::try_from(bytes).unwrap_or(0).into();
        reply.put_first(VpdHead { peripheral: 0, page, bytes }.as_bytes());
        Ok(())
    }

    /// Page 83h: the T10 vendor identification designator (SPC-4, T10 vendor ID based designator), and NAA where there is a world-wide name.
    fn identification(&self, reply: &mut Reply) {
        let serial = self.config.serial_text();
        let text =
            self.config.vendor.len().saturating_add(self.config.product.len()).saturating_add(serial.len());
        let bytes = u8::try_from(text).unwrap_or(0);
        reply.push(Designator { code_set: 2, kind: 1, reserved: 0, bytes }.as_bytes());
        reply.push(&self.config.vendor);
        reply.push(&self.config.product);
        reply.push(serial);
        if let Some(naa) = self.config.naa {
            reply.push(Designator { code_set: 1, kind: 3, reserved: 0, bytes: 8 }.as_bytes());
            reply.push(&naa.to_be_bytes());
        }
    }
}

fn block_limits(info: &Info) -> BlockLimits {
    let shift = info.logical_block_bytes.trailing_zeros();
    let physical = info.physical_block_bytes.max(info.logical_block_bytes) >> shift;
    let unmap = |value: u32| if info.discard { value } else { 0 };
    BlockLimits {
        wsnz: 1,
        compare_and_write_max: compare_max_blocks(info),
        transfer_granularity: u16::try_from(physical).unwrap_or(0).into(),
        transfer_max: transfer_max_blocks(info).into(),
        transfer_optimal: (info.optimal_io_bytes >> shift).min(transfer_max_blocks(info)).into(),
        unmap_max: unmap(u32::MAX).into(),
        unmap_descriptors_max: unmap(unmap_descriptors_max(info).into()).into(),
        unmap_granularity: unmap(physical).into(),
        write_same_max: write_same_max_blocks(info).into(),
        ..BlockLimits::new_zeroed()
    }
}

fn provisioning(info: &Info) -> Provisioning {
    // LBPU, LBPWS, LBPWS10. LBPRZ stays 0: a discard may leave the old data.
    let (flags, kind) = if info.discard { (0xe0, 2) } else { (0, 0) };
    Provisioning { threshold: 0, flags, kind, reserved: 0 }
}

fn last_block(info: &Info) -> Result<u64, Sense> {
    capacity_blocks(info).checked_sub(1).ok_or(Sense::new(Key::NotReady, Code::MEDIUM_NOT_PRESENT))
}

/// Of every block it is true that it is mapped or not known to be: a storage cannot be asked which blocks it has space for.
fn lba_status(lba: u64, info: &Info, reply: &mut Reply) -> Result<(), Sense> {
    let blocks = capacity_blocks(info).checked_sub(lba).filter(|blocks| *blocks != 0);
    let blocks = u32::try_from(blocks.ok_or(Sense::OUT_OF_RANGE)?).unwrap_or(u32::MAX);
    let status =
        LbaStatus { bytes: 20.into(), lba: lba.into(), blocks: blocks.into(), ..LbaStatus::new_zeroed() };
    reply.push(status.as_bytes());
    Ok(())
}

fn read_capacity10(info: &Info, reply: &mut Reply) -> Result<(), Sense> {
    // All ones beyond the field's range: READ CAPACITY(16) is to be used (SBC-3 5.15.2).
    let last = u32::try_from(last_block(info)?).unwrap_or(u32::MAX).into();
    reply.push(Capacity10 { last, block_bytes: info.logical_block_bytes.into() }.as_bytes());
    Ok(())
}

fn read_capacity16(info: &Info, reply: &mut Reply) -> Result<(), Sense> {
    let physical = info.physical_block_bytes.max(info.logical_block_bytes);
    let exponent = (physical >> info.logical_block_bytes.trailing_zeros()).trailing_zeros();
    let capacity = Capacity16 {
        last: last_block(info)?.into(),
        block_bytes: info.logical_block_bytes.into(),
        exponent: u8::try_from(exponent.min(15)).unwrap_or(0),
        provisioning: if info.discard { 0x8000 } else { 0 }.into(), // LBPME; LBPRZ=0
        ..Capacity16::new_zeroed()
    };
    reply.push(capacity.as_bytes());
    Ok(())
}
