//! What must be true in the end.

use super::*;

impl World {
    pub(crate) fn all_faults_happened(&self) -> bool {
        self.faults.all_happened()
    }

    /// How often the dirty bits were looked at to learn from them, in all and in rounds.
    pub(crate) fn samples(&self) -> (u64, u64) {
        self.samples
    }

    pub(crate) fn verified(&self) -> Option<(u64, u64)> {
        let report = self.source.as_ref().and_then(|source| source.target_report().copied());
        report.and_then(|report| report.verified)
    }

    /// Every page was compared and none differs, if that was asked for.
    pub(crate) fn assert_verified(&self) {
        let pages = self.shape.iter().map(|(_, pages)| pages).sum();
        let expected = self.verify.then_some((pages, 0));
        assert_eq!(self.verified(), expected, "{self}");
    }

    pub(crate) fn assert_runs_whole_on_target(&self) {
        assert_eq!(self.owner, Owner::Target, "{self}: {}", self.state());
        let whole = self.target_memory.iter().all(Option::is_some);
        assert!(whole, "{self}: pages are missing; {}", self.state());
        assert_eq!(self.source_outcome, Some(SourceOutcome::Completed), "{self}");
    }

    pub(crate) fn assert_runs_on_source(&self) {
        assert_eq!(self.owner, Owner::Source, "{self}: {}", self.state());
        assert!(!self.tracking || self.tracking_stuck, "{self}: tracking goes on");
        let ended = matches!(
            self.source_outcome,
            Some(SourceOutcome::Aborted { .. } | SourceOutcome::Refused(_))
        );
        assert!(ended, "{self}: {}", self.state());
        let is_sought = matches!(
            self.source_outcome,
            Some(SourceOutcome::Aborted {
                target_may_hold: true,
                ..
            })
        );
        assert!(
            !self.target_waits() || is_sought,
            "{self}: nobody tells the target that waits"
        );
    }

    /// One side runs the whole VM and both know; or it is lost, where nothing could have saved it.
    pub(crate) fn assert_saved_or_unsavable(&mut self) {
        match self.owner {
            Owner::Source => {
                assert!(!self.source_dead, "{self}: runs on a dead source");
                self.assert_runs_on_source();
                self.migrate_again();
            }
            Owner::Target => {
                let missing = self.target_memory.iter().any(Option::is_none);
                let left_alone = self.source_dead || self.source_outcome == Some(SourceOutcome::Lost);
                if !left_alone {
                    self.assert_runs_whole_on_target();
                } else if missing {
                    assert!(!self.pb_data_is_complete(), "{self}: nobody reads what is stored");
                    assert_eq!(self.phase_of_target(), Some(Phase::PostCopyPaused), "{self}");
                }
                if !missing {
                    let ended = matches!(self.target_outcome, Some(TargetOutcome::Completed { .. }));
                    assert!(ended, "{self}: the target waits for nobody; {}", self.state());
                }
            }
            Owner::Nobody => self.assert_unsavable(),
        }
    }

    fn assert_unsavable(&self) {
        let why = if self.crashed_after_taking {
            // The process that ran the VM died.
            true
        } else if self.source_dead {
            // It died with the VM, or with pages that the target lacks; otherwise a person has let the target run it.
            let missing = self.target_memory.iter().any(Option::is_none);
            let given_up = self.source_record == SourceRecord::GivenUp && !self.faults.happened(Fault::SourceDiskFull);
            !self.target_waits() || missing || !given_up
        } else {
            self.source_guest_broken
        };
        assert!(why, "{self}: nobody runs the VM; {}", self.state());
    }

    fn state(&self) -> String {
        format!(
            "source {:?} {:?} {:?}, target {:?} {:?} {:?}",
            self.source_record,
            self.phase_of_source(),
            self.source_outcome,
            self.target_record,
            self.phase_of_target(),
            self.target_outcome,
        )
    }
}
