//! Mode parameters: what MODE SENSE says, what MODE SELECT may change.

use blk_core::memory::GuestMemory;
use blk_core::storage::{Info, Storage};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::io::{Io, Refusal};
use super::job::{After, Begun, Job};
use super::limits::capacity_blocks;
use super::reply::Reply;
use super::settings::Settings;
use super::unit::Unit;
use crate::command::{ModeForm, ModeSense, PageControl};
use crate::sense::{Code, Key, Sense};
use crate::task_set::Task;
use crate::transport::Transport;
use crate::wire::mode::{
    Caching, Control, ErrorRecovery, Exceptions, Header6, Header10, LongDescriptor, ShortDescriptor,
};

const WCE: u8 = 0x04;
const D_SENSE: u8 = 0x04;
/// GLTSD: there are no log pages to save parameters of.
const GLTSD: u8 = 0x02;
/// QUEUE ALGORITHM MODIFIER 1: SIMPLE commands may be reordered, whether or not they overlap, and they are, since the
/// storage has several in flight (SPC-4, Control mode page).
const UNRESTRICTED_REORDERING: u8 = 0x10;
/// DEXCPT: informational exceptions are not reported, for there are none.
const DEXCPT: u8 = 0x08;

/// The page codes, in the order in which page 3Fh returns them (SPC-4, MODE SENSE(6)).
const PAGES: [u8; 4] = [0x01, CACHING, 0x0a, 0x1c];
/// The caching page (SBC-3, mode parameters).
const CACHING: u8 = 0x08;
const ALL_PAGES: u8 = 0x3f;
const ALL_SUBPAGES: u8 = 0xff;

/// The longest parameter list that is taken: header, block descriptor and every page are 80 bytes.
const LIST_MAX: usize = 128;
/// The longest page.
const PAGE_BYTES_MAX: usize = size_of::<Caching>();

/// Settings with the changeable bits of a page that was checked.
fn with_page(settings: Settings, page: &[u8]) -> Settings {
    let flags = page.get(2).copied().unwrap_or(0);
    match page.first().copied() {
        Some(CACHING) => Settings { write_cache: flags & WCE != 0, ..settings },
        Some(0x0a) => Settings { descriptor_sense: flags & D_SENSE != 0, ..settings },
        _ => settings,
    }
}

/// Appends a page: the bits of `settings` and, unless a mask of changeable bits is wanted, the constant ones.
/// False if there is no such page.
fn push_page<const B: usize>(reply: &mut Reply<B>, code: u8, settings: Settings, mask: bool) -> bool {
    let constant = |bits: u8| if mask { 0 } else { bits };
    match code {
        0x01 => reply.push(ErrorRecovery { code, bytes: 0x0a, ..ErrorRecovery::new_zeroed() }.as_bytes()),
        CACHING => {
            let flags = if settings.write_cache { WCE } else { 0 };
            reply.push(Caching { code, bytes: 0x12, flags, ..Caching::new_zeroed() }.as_bytes());
        }
        0x0a => {
            let flags = if settings.descriptor_sense { D_SENSE } else { 0 };
            let flags = flags | constant(GLTSD);
            let queue = constant(UNRESTRICTED_REORDERING);
            reply.push(Control { code, bytes: 0x0a, flags, queue, ..Control::new_zeroed() }.as_bytes());
        }
        0x1c => {
            let flags = constant(DEXCPT);
            reply.push(Exceptions { code, bytes: 0x0a, flags, ..Exceptions::new_zeroed() }.as_bytes());
        }
        _ => return false,
    }
    true
}

impl Unit {
    /// MODE SENSE: SPC-4, MODE SENSE(6), MODE SENSE(10).
    pub(super) fn mode_sense(&self, sense: &ModeSense, info: &Info, reply: &mut Reply) -> Result<(), Sense> {
        let settings = match sense.control {
            PageControl::Current => self.settings,
            PageControl::Changeable => Settings::changeable(self.volatile),
            PageControl::Default => self.defaults(),
            PageControl::Saved => {
                return Err(Sense::new(Key::IllegalRequest, Code::SAVING_PARAMETERS_NOT_SUPPORTED));
            }
        };
        if sense.subpage != 0 && sense.subpage != ALL_SUBPAGES {
            return Err(Sense::cdb_field(3, None));
        }
        let long = sense.long_lba && sense.form == ModeForm::Ten;
        // The header's length is known when all is there.
        let header_bytes = push_header(reply, sense.form);
        if !sense.no_descriptors {
            push_block_descriptor(reply, long, info);
        }
        let pages_at = reply.bytes().len();
        let mask = sense.control == PageControl::Changeable;
        for code in PAGES.into_iter().filter(|code| sense.page == ALL_PAGES || sense.page == *code) {
            push_page(reply, code, settings, mask);
        }
        if reply.bytes().len() == pages_at {
            return Err(Sense::cdb_field(2, Some(5)));
        }
        put_header(reply, sense.form, long, pages_at.saturating_sub(header_bytes), info);
        Ok(())
    }

    /// MODE SELECT: SPC-4, MODE SELECT(6), MODE SELECT(10). All of the list is checked before any of it takes effect.
    #[inline(never)]
    pub(super) fn mode_select<M, S, T>(
        &mut self,
        form: ModeForm,
        list_bytes: u16,
        task: &Task,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Begun, Refusal>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let moved_bytes = u64::from(list_bytes);
        if list_bytes == 0 {
            return Ok(Begun::GOOD);
        }
        if task.data_out_bytes < moved_bytes {
            return Err(Refusal::Overrun);
        }
        let mut buffer = [0; LIST_MAX];
        let list = buffer.get_mut(..usize::from(list_bytes)).ok_or(Sense::LIST_LENGTH)?;
        io.guest.take(task.tag, 0, list)?;
        let Selected { settings, caching } = self.parse(form, list, io.storage.info())?;
        // WCE 1 -> 0 ends with GOOD only when what the cache holds is stable: SBC-3, caches. 0 -> 0 asks the storage too: GOOD
        // then says that nothing was lost, and a storage that has lost something gets a chance to say so.
        if caching && !settings.write_cache {
            return Ok(Begun { job: Some(Job::Flush(After::Settings(settings))), moved_bytes });
        }
        self.settings = settings;
        Ok(Begun { job: None, moved_bytes })
    }

    /// What a parameter list asks for.
    fn parse(&self, form: ModeForm, list: &[u8], info: &Info) -> Result<Selected, Sense> {
        let mut at = check_head(form, list, info)?;
        let mut settings = self.settings;
        let mut caching = false;
        while at < list.len() {
            let rest = list.get(at..).unwrap_or_default();
            let mut ours = Reply::<PAGE_BYTES_MAX>::new();
            let mut mask = Reply::<PAGE_BYTES_MAX>::new();
            // SPF and subpages are not there; page 3Fh cannot be selected (CVE-2021-3930).
            let code = rest.first().map_or(0, |byte| byte & 0x7f);
            if !push_page(&mut ours, code, settings, false)
                || !push_page(&mut mask, code, Settings::changeable(self.volatile), true)
            {
                return Err(list_field(at, Some(6)));
            }
            let (ours, mask) = (ours.bytes(), mask.bytes());
            let bytes = rest.get(1).ok_or(Sense::LIST_LENGTH)?;
            if ours.get(1) != Some(bytes) {
                return Err(list_field(at.saturating_add(1), None));
            }
            let page = rest.get(..ours.len()).ok_or(Sense::LIST_LENGTH)?;
            for (index, ((new, old), mask)) in page.iter().zip(ours).zip(mask).enumerate().skip(2) {
                if let Some(bit) = ((new ^ old) & !mask).checked_ilog2() {
                    return Err(list_field(at.saturating_add(index), u8::try_from(bit).ok()));
                }
            }
            settings = with_page(settings, page);
            caching |= code == CACHING;
            at = at.saturating_add(page.len());
        }
        Ok(Selected { settings, caching })
    }
}

/// What a MODE SELECT asks for.
struct Selected {
    settings: Settings,
    /// The caching page is among what it sets.
    caching: bool,
}

/// Checks header and block descriptor, and returns where the pages begin. MODE DATA LENGTH and WP are reserved here.
fn check_head(form: ModeForm, list: &[u8], info: &Info) -> Result<usize, Sense> {
    let (head_bytes, medium_at, medium, long, descriptor_bytes) = match form {
        ModeForm::Six => {
            let (head, _) = Header6::read_from_prefix(list).map_err(|_| Sense::LIST_LENGTH)?;
            (size_of::<Header6>(), 1, head.medium, false, usize::from(head.descriptor_bytes))
        }
        ModeForm::Ten => {
            let (head, _) = Header10::read_from_prefix(list).map_err(|_| Sense::LIST_LENGTH)?;
            let bytes = usize::from(head.descriptor_bytes.get());
            (size_of::<Header10>(), 2, head.medium, head.long_lba & 1 != 0, bytes)
        }
    };
    if medium != 0 {
        return Err(list_field(medium_at, None));
    }
    if descriptor_bytes == 0 {
        return Ok(head_bytes);
    }
    let rest = list.get(head_bytes..).unwrap_or_default();
    let (expected, blocks, block_bytes) = if long {
        let (descriptor, _) = LongDescriptor::read_from_prefix(rest).map_err(|_| Sense::LIST_LENGTH)?;
        (size_of::<LongDescriptor>(), descriptor.blocks.get(), descriptor.block_bytes.get())
    } else {
        let (descriptor, _) = ShortDescriptor::read_from_prefix(rest).map_err(|_| Sense::LIST_LENGTH)?;
        let bytes = descriptor.block_bytes.get() & 0x00ff_ffff;
        (size_of::<ShortDescriptor>(), descriptor.blocks.get().into(), bytes)
    };
    // Neither the capacity nor the block length can be changed; 0 and all ones stand for the capacity (SBC-3, mode parameter block descriptors).
    let all_ones = if long { u64::MAX } else { u32::MAX.into() };
    let same = blocks == 0 || blocks == all_ones || blocks == capacity_blocks(info);
    if descriptor_bytes != expected {
        return Err(list_field(head_bytes.saturating_sub(1), None));
    }
    if !same || block_bytes != info.logical_block_bytes {
        return Err(list_field(head_bytes, None));
    }
    Ok(head_bytes.saturating_add(expected))
}

fn push_block_descriptor(reply: &mut Reply, long: bool, info: &Info) {
    let blocks = capacity_blocks(info);
    let block_bytes = info.logical_block_bytes.into();
    if long {
        let descriptor = LongDescriptor { blocks: blocks.into(), reserved: 0.into(), block_bytes };
        reply.push(descriptor.as_bytes());
    } else {
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX).into();
        reply.push(ShortDescriptor { blocks, block_bytes }.as_bytes());
    }
}

/// Makes room for the header, and returns how much.
fn push_header(reply: &mut Reply, form: ModeForm) -> usize {
    match form {
        ModeForm::Six => reply.push(&[0; size_of::<Header6>()]),
        ModeForm::Ten => reply.push(&[0; size_of::<Header10>()]),
    }
    reply.bytes().len()
}

/// Puts the header of a reply that is complete, with block descriptors of `descriptor_bytes`.
fn put_header(reply: &mut Reply, form: ModeForm, long: bool, descriptor_bytes: usize, info: &Info) {
    // WP, and DPOFUA: FUA is honoured (SBC-3, mode parameters, device-specific parameter).
    let device_specific = if info.read_only { 0x90 } else { 0x10 };
    let bytes = reply.bytes().len();
    match form {
        // MODE DATA LENGTH does not count itself.
        ModeForm::Six => reply.put_first(
            Header6 {
                data_bytes: u8::try_from(bytes.saturating_sub(1)).unwrap_or(u8::MAX),
                medium: 0,
                device_specific,
                descriptor_bytes: u8::try_from(descriptor_bytes).unwrap_or(0),
            }
            .as_bytes(),
        ),
        ModeForm::Ten => reply.put_first(
            Header10 {
                data_bytes: u16::try_from(bytes.saturating_sub(2)).unwrap_or(u16::MAX).into(),
                medium: 0,
                device_specific,
                long_lba: u8::from(long),
                reserved: 0,
                descriptor_bytes: u16::try_from(descriptor_bytes).unwrap_or(0).into(),
            }
            .as_bytes(),
        ),
    }
}

fn list_field(at: usize, bit: Option<u8>) -> Sense {
    Sense::list_field(u16::try_from(at).unwrap_or(u16::MAX), bit)
}
