//! Stack that a function needs, callees included: by its code, along the deepest path that there is, whatever a guest does. A
//! stack that is painted and looked at shows the deepest path that some guest took.
//!
//! This is exact but for calls through pointers. Where the caller has put a function's address into the register that it calls, as
//! the compiler does for `memcpy`, it is that one; elsewhere the deepest of those in tables of functions. Recursion would be an error.

use std::collections::{BTreeMap, HashMap};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

/// Bytes of a return address.
const RETURN_BYTES: u64 = 8;

/// The functions of a program.
pub(crate) struct Stack<'a> {
    functions: BTreeMap<u64, (&'a str, &'a [u8])>,
    /// Those in tables of functions.
    tables: Vec<u64>,
    /// What is known already; `None` while it is being found out.
    known: HashMap<u64, Option<u64>>,
    /// The eight bytes at an address.
    word: Box<dyn Fn(u64) -> Option<u64> + 'a>,
}

impl<'a> Stack<'a> {
    pub(crate) fn new(word: impl Fn(u64) -> Option<u64> + 'a) -> Self {
        let (functions, tables, known) = (BTreeMap::new(), Vec::new(), HashMap::new());
        Self { functions, tables, known, word: Box::new(word) }
    }

    pub(crate) fn add(&mut self, name: &'a str, address: u64, bytes: &'a [u8]) {
        self.functions.insert(address, (name, bytes));
    }

    /// Looks for tables of functions in constants, once all functions are there.
    pub(crate) fn add_constants(&mut self, bytes: &[u8]) {
        let words = bytes.chunks_exact(8).filter_map(|word| word.try_into().ok().map(u64::from_le_bytes));
        self.tables.extend(words.filter(|word| self.functions.contains_key(word)));
    }

    /// Bytes below the caller's stack pointer, the return address included.
    pub(crate) fn of(&mut self, name: &str) -> u64 {
        let found = self.functions.iter().find(|(_, (other, _))| *other == name);
        let address = *found.unwrap_or_else(|| panic!("{name} is not linked")).0;
        self.function(address) + RETURN_BYTES
    }

    /// The function whose address an instruction takes, or has in the memory that it names.
    fn named(&self, instruction: &Instruction) -> Option<u64> {
        let address = if instruction.is_ip_rel_memory_operand() {
            let at = instruction.ip_rel_memory_address();
            if instruction.mnemonic() == Mnemonic::Lea { at } else { (self.word)(at)? }
        } else if instruction.mnemonic() == Mnemonic::Mov && instruction.op1_kind() == OpKind::Immediate32 {
            instruction.immediate32().into()
        } else {
            return None;
        };
        self.functions.contains_key(&address).then_some(address)
    }

    fn function(&mut self, address: u64) -> u64 {
        let Some(&(name, bytes)) = self.functions.get(&address) else {
            panic!("no function begins at {address:#x}")
        };
        match self.known.insert(address, None) {
            Some(None) => panic!("{name} calls itself"),
            Some(Some(known)) => {
                self.known.insert(address, Some(known));
                return known;
            }
            None => {}
        }
        let deepest = Walk::new(address, bytes, name).deepest(self);
        self.known.insert(address, Some(deepest));
        deepest
    }
}

/// A walk through all paths of a function.
struct Walk<'a> {
    name: &'a str,
    start: u64,
    bytes: &'a [u8],
    /// How deep the stack is before each instruction that was seen.
    seen: BTreeMap<u64, u64>,
    /// Where it goes on, and how deep the stack is there.
    ahead: Vec<(u64, u64)>,
    /// How deep it is at jumps by a table, whose targets are what is seen in no other way.
    tables: Vec<u64>,
    /// How deep it is at the end of a loop that touches a large frame.
    frame: Option<u64>,
    deepest: u64,
}

impl<'a> Walk<'a> {
    fn new(start: u64, bytes: &'a [u8], name: &'a str) -> Self {
        let (seen, tables) = (BTreeMap::new(), Vec::new());
        Self { name, start, bytes, seen, ahead: vec![(start, 0)], tables, frame: None, deepest: 0 }
    }

    fn deepest(mut self, stack: &mut Stack<'_>) -> u64 {
        loop {
            while let Some((at, depth)) = self.ahead.pop() {
                if self.seen.insert(at, depth).is_none() {
                    self.step(self.decode(at), depth, stack);
                }
            }
            let Some(at) = self.unseen() else { return self.deepest };
            let depth =
                self.tables.iter().max().unwrap_or_else(|| panic!("{}: {at:#x} is never reached", self.name));
            self.ahead.push((at, *depth));
        }
    }

    fn decode(&self, at: u64) -> Instruction {
        let bytes = usize::try_from(at - self.start).ok().and_then(|offset| self.bytes.get(offset..));
        Decoder::with_ip(64, bytes.expect("within the function"), at, DecoderOptions::NONE).decode()
    }

    /// All of them, in the order of their addresses.
    fn instructions(&self) -> impl Iterator<Item = Instruction> {
        Decoder::with_ip(64, self.bytes, self.start, DecoderOptions::NONE).into_iter()
    }

    /// The first instruction that no path has come to.
    fn unseen(&self) -> Option<u64> {
        let padding = |mnemonic| matches!(mnemonic, Mnemonic::Nop | Mnemonic::Int3 | Mnemonic::Ud2);
        let mut unseen = self.instructions().filter(|instruction| !self.seen.contains_key(&instruction.ip()));
        unseen.find(|instruction| !padding(instruction.mnemonic())).map(|instruction| instruction.ip())
    }

    fn step(&mut self, instruction: Instruction, depth: u64, stack: &mut Stack<'_>) {
        let after = self.after(&instruction, depth);
        self.deepest = self.deepest.max(after).max(depth);
        let next = instruction.next_ip();
        match instruction.flow_control() {
            FlowControl::Next => self.ahead.push((next, after)),
            FlowControl::ConditionalBranch => {
                self.ahead.push((next, depth));
                self.jump(instruction.near_branch_target(), depth, stack);
            }
            FlowControl::UnconditionalBranch => self.jump(instruction.near_branch_target(), depth, stack),
            FlowControl::Call => {
                let callee = stack.function(instruction.near_branch_target());
                self.deepest = self.deepest.max(depth + RETURN_BYTES + callee);
                self.ahead.push((next, depth));
            }
            FlowControl::IndirectCall => {
                let callee = self.pointed_to(&instruction, stack);
                self.deepest = self.deepest.max(depth + RETURN_BYTES + callee);
                self.ahead.push((next, depth));
            }
            FlowControl::IndirectBranch => match stack.named(&instruction) {
                Some(target) => self.jump(target, depth, stack),
                None => self.tables.push(depth),
            },
            FlowControl::Return => assert_eq!(depth, 0, "{} at {:#x}", self.name, instruction.ip()),
            // ud2, syscall.
            _ if instruction.mnemonic() == Mnemonic::Ud2 => {}
            _ if instruction.mnemonic() == Mnemonic::Syscall => self.ahead.push((next, depth)),
            other => panic!("{}: {other:?} at {:#x}", self.name, instruction.ip()),
        }
    }

    /// A jump within the function, or a call in the place of a return.
    fn jump(&mut self, target: u64, depth: u64, stack: &mut Stack<'_>) {
        if (self.start..self.start + self.bytes.len() as u64).contains(&target) {
            self.ahead.push((target, depth));
        } else {
            self.deepest = self.deepest.max(depth + stack.function(target));
        }
    }

    /// The stack of what is called through a pointer.
    fn pointed_to(&self, call: &Instruction, stack: &mut Stack<'_>) -> u64 {
        let register = call.op0_register();
        let named: Vec<u64> = match stack.named(call) {
            Some(function) => vec![function],
            None if register == Register::None => Vec::new(),
            None => {
                let loads = self.instructions().filter(|instruction| instruction.op0_register() == register);
                loads.filter_map(|instruction| stack.named(&instruction)).collect()
            }
        };
        let candidates = if named.is_empty() { stack.tables.clone() } else { named };
        let stacks = candidates.into_iter().map(|function| stack.function(function));
        stacks.max().unwrap_or_else(|| panic!("{}: what is called at {:#x}?", self.name, call.ip()))
    }

    /// How deep the stack is after an instruction.
    fn after(&mut self, instruction: &Instruction, depth: u64) -> u64 {
        let on_stack = instruction.memory_base() == Register::RSP;
        let immediate = matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64);
        match (instruction.mnemonic(), instruction.op0_register()) {
            (Mnemonic::Push | Mnemonic::Pop, _) => {
                depth.wrapping_add_signed(-i64::from(instruction.stack_pointer_increment()))
            }
            (Mnemonic::Sub, Register::RSP) if immediate => depth.wrapping_add(instruction.immediate(1)),
            (Mnemonic::Add, Register::RSP) if immediate => depth.wrapping_sub(instruction.immediate(1)),
            (Mnemonic::Lea, Register::RSP) if on_stack => {
                depth.wrapping_sub(instruction.memory_displacement64())
            }
            // A large frame is touched page by page, in a loop that ends where the stack pointer is R11.
            (Mnemonic::Sub, Register::R11) if immediate => {
                self.frame = Some(depth.wrapping_add(instruction.immediate(1)));
                depth
            }
            (Mnemonic::Cmp, Register::RSP) => self.frame.expect("the end of the loop"),
            (Mnemonic::Test, Register::RSP) => depth,
            (other, Register::RSP) => {
                panic!("{}: {other:?} of the stack pointer at {:#x}", self.name, instruction.ip())
            }
            _ => depth,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack<'a>(functions: &[(&'a str, u64, &'a [u8])]) -> Stack<'a> {
        let mut stack = Stack::new(|_| None);
        functions.iter().for_each(|(name, address, bytes)| stack.add(name, *address, bytes));
        stack
    }

    #[test]
    fn the_deepest_path_counts_with_return_addresses() {
        // push rbx; sub rsp, 32; jz +5; call 100h; add rsp, 32; pop rbx; ret.
        let caller = [
            0x53, 0x48, 0x83, 0xec, 0x20, 0x74, 0x05, 0xe8, 0xf4, 0, 0, 0, 0x48, 0x83, 0xc4, 0x20, 0x5b, 0xc3,
        ];
        // push rax; pop rax; ret.
        let callee = [0x50, 0x58, 0xc3];
        let mut stack = stack(&[("caller", 0, &caller), ("callee", 0x100, &callee)]);
        assert_eq!(stack.of("callee"), 8 + 8);
        assert_eq!(stack.of("caller"), 8 + 8 + 32 + 16);
    }

    #[test]
    fn what_is_in_a_table_is_called_by_who_calls_through_one() {
        // call [rax + 10h]; ret.
        let caller = [0xff, 0x50, 0x10, 0xc3];
        let entry = [0x50, 0x58, 0xc3];
        let mut stack = stack(&[("caller", 0, &caller), ("entry", 0x100, &entry)]);
        stack.add_constants(&[0x100_u64.to_le_bytes(), 7_u64.to_le_bytes()].concat());
        assert_eq!(stack.of("caller"), 8 + 16);
    }

    #[test]
    #[should_panic(expected = "endless calls itself")]
    fn recursion_has_no_deepest_path() {
        stack(&[("endless", 0, &[0xe8, 0xfb, 0xff, 0xff, 0xff, 0xc3])]).of("endless");
    }
}
