-- Machines that are kept stopped, to be started again when they are needed.
ALTER TABLE vms ADD COLUMN park_us     INTEGER NOT NULL DEFAULT 0; -- to be stopped from then on; 0 = it is to run
ALTER TABLE vms ADD COLUMN stopping_us INTEGER NOT NULL DEFAULT 0; -- the cloud was asked to stop it; 0 = it runs
ALTER TABLE vms ADD COLUMN stopped_us  INTEGER NOT NULL DEFAULT 0; -- it had stopped
ALTER TABLE vms ADD COLUMN started_us  INTEGER NOT NULL DEFAULT 0; -- the cloud was asked to start it again

-- What lists are filtered by: looking for a few machines reads this and not what is told of all.
CREATE INDEX vms_to_filter ON vms (id, prefix, zone, drained, created_us, shape, images);
