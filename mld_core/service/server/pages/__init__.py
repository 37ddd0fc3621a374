"""The pages of `mld ui` at the team's server: who looks (`sign_in`), at what (`desk`, to be opened first)."""
