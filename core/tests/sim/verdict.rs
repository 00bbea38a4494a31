//! What must be true in the end.

use super::*;

impl World {
    pub(crate) fn fault_happened(&self) -> bool {
        self.happened
    }

    /// Its record says so; whether it came to run the VM then is the same to everybody else.
    pub(crate) fn target_took(&self) -> bool {
        matches!(self.target_record, Some(TargetRecord::Taken | TargetRecord::Complete))
    }

    pub(crate) fn assert_verified(&self) {
        let pages = REGIONS.iter().map(|(_, pages)| pages).sum();
        assert_eq!(self.verified, Some((pages, 0)), "{}", self.label);
        let report = self.source.as_ref().and_then(|source| source.target_report().copied());
        assert_eq!(
            report.and_then(|report| report.verified),
            Some((pages, 0)),
            "{}",
            self.label
        );
    }

    pub(crate) fn assert_runs_whole_on_target(&self) {
        assert_eq!(
            self.owner,
            Owner::Target,
            "{}: outcome {:?}",
            self.label,
            self.source_outcome
        );
        assert!(
            self.target_memory.iter().all(Option::is_some),
            "{}: pages are missing",
            self.label
        );
        assert_eq!(self.source_outcome, Some(SourceOutcome::Completed), "{}", self.label);
    }

    pub(crate) fn assert_runs_whole_on_source(&self) {
        assert_eq!(
            self.owner,
            Owner::Source,
            "{}: outcome {:?}",
            self.label,
            self.source_outcome
        );
        assert!(!self.tracking, "{}: tracking goes on", self.label);
        assert!(
            matches!(self.source_outcome, Some(SourceOutcome::Aborted { .. })),
            "{}: {:?}",
            self.label,
            self.source_outcome
        );
    }

    pub(crate) fn assert_runs_whole_somewhere(&self) {
        match self.owner {
            Owner::Source => self.assert_runs_whole_on_source(),
            _ => self.assert_runs_whole_on_target(),
        }
    }

    pub(crate) fn assert_lost_with_target(&self) {
        assert_eq!(
            self.owner,
            Owner::Nobody,
            "{}: the source runs a VM that ran elsewhere",
            self.label
        );
    }

    /// The VM is gone only where nothing could have saved it: before the source gave it up, or with pages still missing.
    pub(crate) fn assert_after_source_crash(&self) {
        if !self.happened {
            return self.assert_runs_whole_on_target();
        }
        let missing = self.target_memory.iter().filter(|page| page.is_none()).count();
        match self.owner {
            Owner::Source => panic!("{}: runs on a dead source", self.label),
            Owner::Target => assert!(
                missing == 0 || self.phase() == Some(Phase::PostCopyPaused),
                "{}",
                self.label
            ),
            Owner::Nobody => {
                assert!(!self.target_ran, "{}: the target stopped a VM it had taken", self.label);
                assert!(
                    self.phase() != Some(Phase::HandOverUnknown) || missing > 0,
                    "{}: savable, not saved",
                    self.label
                );
            }
        }
    }

    pub(super) fn phase(&self) -> Option<Phase> {
        self.target.as_ref().map(Target::phase)
    }
}
