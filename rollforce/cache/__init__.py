"""What a stream remembers.

`kv_cache` is all of it, `arena` holds the latents that are kept as they are, `region` what is kept in another form,
`commit_plan` says what a commit does to both, `visibility` what one call sees, and `policies` who decides.
"""
