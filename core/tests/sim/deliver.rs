//! What arrives, and where it goes.

use super::*;

impl World {
    pub(super) fn deliver_to_source(&mut self) {
        match self.link.next_for_source() {
            Some(Frame::Control(bytes)) => {
                let message = decode_message(&bytes).expect("what was encoded is decoded");
                self.tell_source(SourceEvent::Message(&message));
            }
            Some(Frame::Request(page)) => {
                let Some(source) = &mut self.source else { return };
                if source.on_fault_request(Gfn(page)) == FaultAnswer::Send {
                    let values = vec![self.source_memory[page as usize]];
                    self.link.send_to_target(Frame::Pages {
                        first: page,
                        values,
                        demanded: true,
                    });
                }
            }
            Some(Frame::Pages { .. }) => panic!("{}: pages flow to the target only", self.label),
            None => {}
        }
    }

    pub(super) fn deliver_to_target(&mut self) {
        match self.link.next_for_target() {
            Some(Frame::Control(bytes)) => {
                let message = decode_message(&bytes).expect("what was encoded is decoded");
                if let Message::Hashes { first, bytes } = &message {
                    for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
                        self.received_hash[first.0 as usize + index] = u64::from_le_bytes(*word);
                    }
                }
                self.tell_target(TargetEvent::Message(&message));
            }
            Some(Frame::Pages {
                first,
                values,
                demanded,
            }) => self.install(first, &values, demanded),
            Some(Frame::Request(_)) => panic!("{}: requests flow to the source only", self.label),
            None => {}
        }
    }

    pub(super) fn install(&mut self, first: u64, values: &[u64], demanded: bool) {
        let Some(target) = &self.target else { return };
        let running = target.running();
        for (index, value) in values.iter().enumerate() {
            let page = first as usize + index;
            if !running || self.target_memory[page].is_none() {
                self.target_memory[page] = Some(*value);
                self.installed_hash[page] = hash(*value);
            }
        }
        let run = Run::new(Gfn(first), Pages(values.len() as u64));
        self.tell_target(if running {
            TargetEvent::Installed { run, demanded }
        } else {
            TargetEvent::Received(run)
        });
    }
}
